"""The mapping models that can be corrected.

Each is a module here with the constants and functions of
:class:`~recbole_llmd.unlearning.mapping.correction.MappingModel`, over NumPy and SciPy arrays alone. To add a model,
add its file and register it (:func:`recbole_llmd.registry.register_mapping`).
"""
