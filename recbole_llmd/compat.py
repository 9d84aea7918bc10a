"""Lets RecBole 1.2.1 run on current NumPy, pandas, SciPy, PyTorch and setuptools.

RecBole 1.2.1 is its newest release; it was written for NumPy 1.x, pandas 1.x, SciPy < 1.13, PyTorch < 2.6 and
setuptools < 81. Each patch here mends one cause, says from and until which version it is needed, and names the
upstream change or RecBole issue. :func:`apply` runs those that are needed once, in their order in this file;
``import recbole_llmd`` calls it.
"""

import functools
import importlib
import sys
import types
import warnings
from collections import OrderedDict
from importlib import util
from typing import Any

import numpy as np

from recbole_llmd.patching import NEXT_THOP, PATCHES, patch


def _called_by_recbole() -> bool:
    """Whether the function that asks was called from RecBole's own code."""
    return str(sys._getframe(2).f_globals.get("__name__")).split(".")[0] == "recbole"


class _LazyRayTune(types.ModuleType):
    """Stands for ``ray.tune`` inside RecBole; imports the real ray at the first use that needs it."""

    def report(self, *args: Any, **metrics: Any) -> None:
        """Report to ray if the caller runs under ray; outside a ray run there is nobody to report to."""
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            importlib.import_module("ray.tune").report(*args, **metrics)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module("ray.tune"), name)


@patch("`import recbole.quick_start` imports ray, whose releases up to 2.6.3 fail on setuptools 81 and NumPy 2")
def import_without_ray() -> None:
    """RecBole's ceiling, ray 2.6.3, wants ``pkg_resources``, gone from setuptools 81, and ``numpy.bool8``, gone from
    NumPy 2. It serves ray-based tuning alone, so it is loaded there and nowhere else (RecBole issue #2215).
    """
    if "recbole.quick_start.quick_start" in sys.modules:
        return
    hidden = {name: sys.modules.pop(name) for name in ["ray", "ray.tune"] if name in sys.modules}
    ray: Any = types.ModuleType("ray")
    ray.tune = _LazyRayTune("ray.tune")
    sys.modules.update({"ray": ray, "ray.tune": ray.tune})
    try:
        importlib.import_module("recbole.quick_start.quick_start")
    finally:
        del sys.modules["ray"], sys.modules["ray.tune"]
        sys.modules.update(hidden)


@patch("thop imports `distutils`", "python", "3.12", NEXT_THOP)
def distutils_for_thop() -> None:
    """``thop`` (RecBole's FLOPs counter) imports ``distutils.version``, which Python 3.12 removed (PEP 632).
    setuptools carries a copy: its start-up hook puts it in place, or else its import does.
    """
    if sys.version_info >= (3, 12) and not util.find_spec("distutils") and util.find_spec("setuptools"):
        importlib.import_module("setuptools")


@patch("RecBole reads `np.float`, `np.int`, ..., and its Config `np.float_`, `np.unicode_`, ...", "numpy", "1.24")
def numpy_aliases() -> None:
    """RecBole reads ``np.float``, ``np.int``, ``np.bool`` ... (removed in NumPy 1.24), which its Config sets from
    ``np.float_``, ``np.unicode_`` ... (removed in NumPy 2). The names are set here once, so that a checkpoint
    can be read before any Config was built, and Config's own setter is retired (RecBole PR #2155).
    """
    present = {"float": np.float64, "complex": np.complex128, "long": np.int_, "unicode": np.str_}
    present.update({name: getattr(np, name + "_") for name in ("bool", "int", "object", "str")})
    for name, scalar_type in present.items():
        if name not in vars(np):
            setattr(np, name, scalar_type)
    from recbole.config.configurator import Config

    Config.compatibility_settings = lambda self: None


@patch("results hold NumPy's scalars, which print as `np.float64(0.1)` from NumPy 2 on")
def numpy_scalar_results() -> None:
    """RecBole's metrics are NumPy's scalars, in its result lines and in the dictionaries it returns, and NumPy 2 prints
    them with their type (NEP 51). The evaluator returns plain numbers.
    """
    from recbole.evaluator import Evaluator

    original = Evaluator.evaluate

    @functools.wraps(original)
    def evaluate(self: Any, dataobject: Any) -> OrderedDict[str, float]:
        result: OrderedDict[str, Any] = original(self, dataobject)
        return type(result)((name, v.item() if isinstance(v, np.generic) else v) for name, v in result.items())

    Evaluator.evaluate = evaluate


@patch("ItemCoverage, GiniIndex, TailPercentage and AveragePopularity fail")
def counts_in_collector() -> None:
    """``Collector.get_data_struct`` calls ``.cpu()`` on plain counts too (RecBole issues #2131 and #2191). The counts
    are kept out of its way.
    """
    from recbole.evaluator import Collector

    original = Collector.get_data_struct

    @functools.wraps(original)
    def get_data_struct(self: Any) -> Any:
        collected = self.data_struct._data_dict
        counts = {key: collected.pop(key) for key in list(collected) if not hasattr(collected[key], "cpu")}
        returned = original(self)
        for data_struct in (self.data_struct, returned):
            data_struct._data_dict.update(counts)
        return returned

    Collector.get_data_struct = get_data_struct


@patch("LightGCN, NGCF and others call `dok_matrix._update`", "scipy", "1.13")
def scipy_dok_update() -> None:
    """LightGCN, NGCF, NCL, GCMC, SpectralCF, KGIN and MCCLK fill a ``dok_matrix`` through ``_update``, which
    SciPy 1.13 removed (RecBole issue #2215).
    """
    from scipy.sparse import dok_matrix

    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = lambda self, entries: self._dict.update(entries)


@patch("`torch.load` warns of RecBole's checkpoints (a pickled Config), and refuses them from 2.6 on", "torch", "2.4")
def torch_load_of_checkpoints() -> None:
    """Since PyTorch 2.6 ``torch.load`` reads tensors only by default, while RecBole's checkpoints hold a pickled
    Config (RecBole issue #2215, PR #2078). The old default comes back for calls made by RecBole's own
    modules, which read a checkpoint that the user trained or named; every other caller keeps PyTorch's.
    """
    import torch

    load = torch.load

    @functools.wraps(load)
    def load_for_recbole(*args: Any, **kwargs: Any) -> Any:
        if _called_by_recbole():
            kwargs.setdefault("weights_only", False)
        return load(*args, **kwargs)

    torch.load = load_for_recbole


@patch("`torch.cuda.amp` warns in every epoch", "torch", "2.4")
def torch_amp() -> None:
    """``torch.cuda.amp.GradScaler`` and ``torch.cuda.amp.autocast`` are deprecated since PyTorch 2.4 and warn in
    every epoch; the trainer gets their present forms (RecBole PR #2078).
    """
    import torch
    from recbole.trainer import trainer

    scaler, autocast = (functools.partial(cls, "cuda") for cls in (torch.amp.GradScaler, torch.amp.autocast))
    trainer.amp = types.SimpleNamespace(GradScaler=scaler, autocast=autocast)


@patch("`torch.sparse.FloatTensor` warns", "torch", "2.1")
def torch_sparse_tensor() -> None:
    """RecBole's graph models build their adjacency by ``torch.sparse.FloatTensor(...)``, which PyTorch deprecates
    with a warning; its present form warns too unless told whether to check the indices. RecBole's calls
    are passed to that form; for everybody else the name stays what it was, ``isinstance`` included.
    """
    import torch

    sparse: Any = torch.sparse
    original = sparse.FloatTensor

    class FloatTensorType(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if _called_by_recbole():
                return torch.sparse_coo_tensor(*args, dtype=torch.float32, check_invariants=False, **kwargs)
            return original(*args, **kwargs)

        def __instancecheck__(cls, tensor: object) -> bool:
            return isinstance(tensor, original)

        def __getattr__(cls, name: str) -> Any:
            return getattr(original, name)

    sparse.FloatTensor = FloatTensorType("torch.sparse.FloatTensor", (), {})


@patch("importing SINE, as every sequential model does, switches anomaly detection on: all training is slower")
def torch_anomaly_detection() -> None:
    """The module of SINE, which RecBole imports with every sequential model, switches PyTorch's anomaly detection on
    for the whole process: the gradients of all operations of all models are searched for NaN and their stacks recorded,
    which takes a fifth to a third of an epoch. It is off again; who wants it switches it on after the import.
    """
    import torch

    sine = "recbole.model.sequential_recommender.sine"
    before = sine not in sys.modules and torch.is_anomaly_enabled()
    importlib.import_module(sine)
    torch.autograd.set_detect_anomaly(before)


@patch("PyTorch warns of sound lines in the auto-encoders, DMF, GCMC and SpectralCF", "torch", "1.9")
def torch_warnings_about_models() -> None:
    """PyTorch warns about two lines inside RecBole's models which do what they should: a list as an index (``predict``
    of the auto-encoders, still read as a tuple) and a tensor made from a list of arrays (DMF, GCMC, SpectralCF).
    There is no hook to mend them, so these messages are not shown when they come from there.
    """
    for message in ("Using a non-tuple sequence for multi", "Creating a tensor from a list of numpy"):
        warnings.filterwarnings("ignore", message, UserWarning, r"recbole\.model\.")


@patch("missing sequences stay missing, and their features fail to load (pandas 2 warns)", "pandas", "2.2")
def pandas_missing_sequences() -> None:
    """``Dataset._load_feat`` fills missing sequences by ``df[field].fillna(inplace=True)``, which changes a copy
    under pandas 3 (copy-on-write) and then fails on ``NaN.split`` (RecBole issue #2215). The file reader of
    RecBole's dataset module fills them first; pandas' warning about RecBole's own line is silenced there. Texts
    are objects, as they were: pandas 3 has a type for them, of which taking single values is slow.
    """
    import pandas as pd
    from recbole.data.dataset import dataset as module

    def read_csv(*args: Any, **kwargs: Any) -> Any:
        frame = pd.read_csv(*args, **kwargs)
        for column in frame.columns:
            if str(column).endswith("_seq"):  # the file's head: "name:token_seq" or "name:float_seq"
                frame[column] = frame[column].fillna("")
        texts = frame.select_dtypes("string").columns  # RecBole counts and maps tokens one by one
        return frame.astype(dict.fromkeys(texts, object))

    module.pd = types.SimpleNamespace(**{**vars(pd), "read_csv": read_csv})
    original = module.Dataset._load_feat

    @functools.wraps(original)
    def _load_feat(self: Any, filepath: str, source: Any) -> pd.DataFrame:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A value is .*set on a copy", module=r"recbole\.data\.dataset\.dataset")
            return original(self, filepath, source)

    module.Dataset._load_feat = _load_feat


@patch("missing tokens and floats stay missing (pandas 2 warns)", "pandas", "2.2")
def pandas_fill_nan() -> None:
    """``Dataset._fill_nan`` fills missing tokens and floats by ``feat[field].fillna(inplace=True)``, which has no
    effect under pandas 3 (copy-on-write; RecBole issue #2215). The same rules, by assignment.
    """
    from recbole.data.dataset import Dataset
    from recbole.utils import FeatureType

    def _fill_nan(self: Any) -> None:
        self.logger.debug("Filling nan")
        for name in self.feat_name_list:
            feat = getattr(self, name)
            for field in feat:
                ftype = self.field2type[field]
                if ftype == FeatureType.TOKEN:
                    feat[field] = feat[field].fillna(0)
                elif ftype == FeatureType.FLOAT:
                    feat[field] = feat[field].fillna(feat[field].mean())
                else:
                    empty = np.array([], dtype=np.int64 if ftype == FeatureType.TOKEN_SEQ else np.float64)
                    feat[field] = [empty if isinstance(value, float) else value for value in feat[field]]

    Dataset._fill_nan = _fill_nan


@patch("sequence features fail to load; `benchmark_filename` gets wrong lengths (pandas 2 warns)", "pandas", "2.1")
def pandas_lengths_of_sequences() -> None:
    """RecBole takes the length of every sequence in a column by ``feat[field].agg(len)``. pandas 2.1 deprecates that
    with a warning and pandas 3 returns the length of the column: sequence features cannot be loaded any
    more, and the sequences of ``benchmark_filename`` data would silently all get one and the same length.
    """
    import pandas as pd

    original = pd.Series.agg

    @functools.wraps(original)
    def agg(self: pd.Series, func: Any = None, *args: Any, **kwargs: Any) -> Any:
        if func is len and _called_by_recbole():
            return self.map(len)
        return original(self, func, *args, **kwargs)

    pd.Series.agg = agg


@patch("tensors share the memory of a DataFrame, which is read-only from pandas 3 on")
def pandas_read_only_arrays() -> None:
    """Under pandas 3 the arrays behind a DataFrame are read-only. RecBole makes tensors of them without a copy:
    PyTorch warns, and writing into such a tensor would change the frame. RecBole gets copies.
    """
    from recbole.data import interaction
    from recbole.data.dataset import Dataset

    original = Dataset._dataframe_to_interaction
    convert = interaction._convert_to_tensor

    @functools.wraps(original)
    def _dataframe_to_interaction(self: Any, data: Any) -> Any:
        # the original reads nothing but the column names and each column's values
        return original(self, {field: types.SimpleNamespace(values=np.array(data[field])) for field in data})

    def _convert_to_tensor(data: Any) -> Any:
        return convert(data.copy() if isinstance(data, np.ndarray) and not data.flags.writeable else data)

    Dataset._dataframe_to_interaction = _dataframe_to_interaction
    interaction._convert_to_tensor = _convert_to_tensor


@functools.cache
def apply() -> None:
    """Apply every patch that the installed versions need, once per process."""
    for each in PATCHES:
        if each.needed():
            each.apply()
