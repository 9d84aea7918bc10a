"""What a run found out besides RecBole's result dictionary, until ``run_recbole`` returns it."""

_extra = {}


def add(key, values):
    """Add to the entry ``key`` of the current run's result."""
    _extra.setdefault(key, {}).update(values)


def take():
    """The entries added since the last call, which they are now removed from."""
    taken = dict(_extra)
    _extra.clear()
    return taken
