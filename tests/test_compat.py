"""Every patch of recbole_llmd.compat: what fails without it, and the exact outcome with it.

A fresh interpreter runs this file as a script. There, one patch after the other, it runs the patch's check before and
after the patch, so that each change from failure to success is due to that one patch, and at the end runs every check
once more with all patches in place. A check fails by an exception or by a warning that Python shows by default.
"""

import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import types
import warnings
from collections import Counter, OrderedDict, UserDict
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import scipy
import torch

ROOT = Path(__file__).resolve().parents[1]
CONFIG = {
    "metrics": ["MRR"],
    "topk": [1],
    "metric_decimal_place": 4,
    "field_separator": "\t",
    "seq_separator": " ",
    "encoding": "utf-8",
    "seq_len": None,
    "numerical_features": [],
    "LIST_SUFFIX": "_list",
}


def load_compat():
    """The module alone: importing the package would apply every patch at once."""
    package = types.ModuleType("recbole_llmd")
    package.__path__ = [str(ROOT / "recbole_llmd")]
    sys.modules["recbole_llmd"] = package
    return importlib.import_module("recbole_llmd.compat")


def dataset(**attributes):
    """Stands for a Dataset: what the method under test reads, and nothing else."""
    return MagicMock(config=CONFIG, field2seqlen={}, field2source={}, field2type={}, **attributes)


def code_in(module, source):
    """Run ``source`` as if it stood in ``module``; the namespace it leaves."""
    namespace = {"__name__": module, "np": np, "torch": torch}
    exec(source, namespace)
    return namespace


# --- the checks: each one is named like its patch ---------------------------------------------------------------------


def import_without_ray():
    sys.modules["ray"] = None  # as if no ray were installed
    try:
        from recbole.quick_start import objective_function  # noqa: F401
    finally:
        del sys.modules["ray"]
    assert sys.modules["recbole.quick_start.quick_start"].tune.report(recall=0.1) is None
    assert not [name for name in sys.modules if name.split(".")[0] == "ray"]


def distutils_for_thop():
    left = code_in("thop.profile", "from distutils.version import LooseVersion as made")
    assert left["made"].__name__ == "LooseVersion"


def numpy_aliases():
    from recbole.config import Config
    from recbole.evaluator.metrics import MRR

    assert MRR.metric_info(None, np.array([[0, 1], [0, 0]])).tolist() == [[0.0, 0.5], [0.0, 0.0]]
    Config.compatibility_settings(None)
    names = ("bool", "int", "float", "complex", "object", "str", "long", "unicode")
    kinds = [np.dtype(getattr(np, name)).kind for name in names]
    assert kinds == ["b", "i", "f", "c", "O", "U", "i", "U"]


def numpy_scalar_results():
    from recbole.evaluator import Evaluator
    from recbole.evaluator.collector import DataStruct

    collected = DataStruct()
    collected.set("rec.topk", torch.tensor([[1, 1], [0, 1], [1, 1], [1, 1]]))  # hit or not, number of positives
    result = Evaluator(CONFIG).evaluate(collected)
    assert type(result) is OrderedDict
    assert repr(dict(result)) == "{'mrr@1': 0.75}"
    assert type(result["mrr@1"]) is float


def counts_in_collector():
    from recbole.evaluator import Collector
    from recbole.evaluator.collector import DataStruct

    collector = types.SimpleNamespace(data_struct=DataStruct())
    for _ in range(2):  # validation and test: the tensors are collected anew, the counts are kept
        collector.data_struct.set("rec.items", torch.tensor([[1]]))
        collector.data_struct.set("data.num_items", 3)
        collector.data_struct.set("data.count_items", Counter("aab"))
        returned = Collector.get_data_struct(collector)
        assert returned.get("data.num_items") == 3 and returned.get("data.count_items") == {"a": 2, "b": 1}
        assert returned.get("rec.items").tolist() == [[1]]
        assert set(collector.data_struct._data_dict) == {"data.num_items", "data.count_items"}


def lightgcn_matrix():
    from recbole.model.general_recommender import LightGCN

    interactions = scipy.sparse.coo_matrix(np.array([[0.0, 1.0], [1.0, 1.0]], dtype=np.float32))
    model = types.SimpleNamespace(n_users=2, n_items=2, interaction_matrix=interactions)
    return LightGCN.get_norm_adj_mat(model)


def scipy_dok_update():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its warning belongs to torch_sparse_tensor
        matrix = lightgcn_matrix()
    half, root = 0.5, 0.5**0.5  # 1 / sqrt(degree of the user * degree of the item)
    expected = torch.tensor([[0, 0, 0, root], [0, 0, root, half], [0, root, 0, 0], [root, half, 0, 0]])
    torch.testing.assert_close(matrix.to_dense(), expected)


def torch_load_of_checkpoints():
    from recbole.trainer import Trainer

    checkpoint = {
        "epoch": 3,
        "cur_step": 2,
        "best_valid_score": 0.25,
        "state_dict": {},
        "optimizer": {},
        "config": UserDict(model="BPR"),  # a class that PyTorch's safe reader refuses, as it does RecBole's Config
    }
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "checkpoint.pth")
        torch.save(checkpoint, path)
        trainer = MagicMock(device="cpu", config={"model": "BPR"})
        Trainer.resume_checkpoint(trainer, path)
        assert (trainer.start_epoch, trainer.cur_step, trainer.best_valid_score) == (4, 2, 0.25)
        with contextlib.suppress(Exception):
            torch.load(path)
            raise SystemError("callers outside RecBole lost torch.load's safe default")
        assert torch.load(path, weights_only=False)["epoch"] == 3


def torch_amp():
    from recbole.trainer import trainer

    assert type(trainer.amp.GradScaler(enabled=False)) is torch.amp.GradScaler
    with trainer.amp.autocast(enabled=False):
        assert not torch.is_autocast_enabled("cuda")


def torch_sparse_tensor():
    matrix = lightgcn_matrix()
    assert matrix.layout == torch.sparse_coo and matrix.dtype == torch.float32 and matrix.shape == (4, 4)
    left = code_in("recbole.model.x", "made = torch.sparse.FloatTensor(torch.tensor([[0], [1]]), torch.ones(1))")
    assert left["made"].to_dense().tolist() == [[0.0, 1.0]]
    assert isinstance(matrix, torch.sparse.FloatTensor) and not isinstance(torch.ones(1), torch.sparse.FloatTensor)
    assert matrix.double().type(torch.sparse.FloatTensor).dtype == torch.float32


def torch_anomaly_detection():
    importlib.import_module("recbole.model.sequential_recommender.sine")
    assert not torch.is_anomaly_enabled(), "anomaly detection is on"


def torch_warnings_about_models():
    lines = "picked = torch.eye(3)[[torch.arange(2), torch.tensor([0, 2])]]; made = torch.tensor([np.arange(2)])"
    left = code_in("recbole.model.x", lines)
    assert left["picked"].tolist() == [1.0, 0.0] and left["made"].tolist() == [[0, 1]]


def pandas_missing_sequences():
    from recbole.data.dataset import Dataset
    from recbole.utils import FeatureSource

    stub = dataset(_get_load_and_unload_col=lambda source: (None, None))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x.item")
        Path(path).write_text("item_id:token\tgenre:token_seq\tvec:float_seq\n1\ta b\t\n2\t\t1 2 3\n", encoding="utf-8")
        frame = Dataset._load_feat(stub, path, FeatureSource.ITEM)
    assert [list(value) for value in frame["genre"]] == [["a", "b"], []]
    assert [list(value) for value in frame["vec"]] == [[], [1.0, 2.0, 3.0]]
    assert stub.field2seqlen == {"item_id": 1, "genre": 2, "vec": 3}


def pandas_fill_nan():
    from recbole.data.dataset import Dataset
    from recbole.utils import FeatureType

    types_of = dict(zip("abcd", (FeatureType.TOKEN, FeatureType.FLOAT, FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ)))
    seq = np.array([7])
    frame = pd.DataFrame({"a": [1, np.nan, 3], "b": [1, 2, np.nan], "c": [seq, np.nan, seq], "d": [np.nan, seq, seq]})
    stub = dataset(feat_name_list=["item_feat"], item_feat=frame)
    stub.field2type.update(types_of)
    Dataset._fill_nan(stub)
    assert frame["a"].tolist() == [1, 0, 3] and frame["b"].tolist() == [1, 2, 1.5]
    assert [value.tolist() for value in frame["c"]] == [[7], [], [7]] and frame["c"][1].dtype == np.int64
    assert [value.tolist() for value in frame["d"]] == [[], [7], [7]] and frame["d"][0].dtype == np.float64


def pandas_lengths_of_sequences():
    from recbole.data.dataset import Dataset, SequentialDataset
    from recbole.utils import FeatureType

    frame = pd.DataFrame({"genre": [np.array(["a", "b"]), np.array(["c"]), np.array(["b", "a", "c"])]})
    stub = dataset(field2id_token={}, field2token_id={})
    stub._concat_remaped_tokens = functools.partial(Dataset._concat_remaped_tokens, stub)
    Dataset._remap(stub, [(frame, "genre", FeatureType.TOKEN_SEQ)])
    assert [value.tolist() for value in frame["genre"]] == [[1, 2], [3], [2, 1, 3]]
    assert stub.field2id_token["genre"].tolist() == ["[PAD]", "a", "b", "c"]
    # the sequences of ``benchmark_filename`` data: without the patch no exception, but three times 3
    benchmark = dataset(inter_feat=frame, item_id_list_field="genre", item_list_length_field="length")
    SequentialDataset._benchmark_presets(benchmark)
    assert frame["length"].tolist() == [2, 1, 3]
    assert frame["length"].agg("sum") == 6 and frame["length"].agg(len) is not None  # other callers: pandas' own


def pandas_read_only_arrays():
    from recbole.data import Interaction
    from recbole.data.dataset import Dataset
    from recbole.utils import FeatureType

    frame = pd.DataFrame({"token": [1, 2], "float": [0.5, 1.0], "seq": [np.array([1, 2]), np.array([3])]})
    stub = dataset()
    stub.field2type.update(zip(frame, (FeatureType.TOKEN, FeatureType.FLOAT, FeatureType.TOKEN_SEQ)))
    stub.field2seqlen.update(token=1, float=1, seq=2)
    made = Dataset._dataframe_to_interaction(stub, frame)
    made["token"][0] = 9
    assert made["token"].tolist() == [9, 2] and frame["token"].tolist() == [1, 2]
    assert made["float"].tolist() == [0.5, 1.0] and made["seq"].tolist() == [[1, 2], [3, 0]]
    assert Interaction(frame[["token", "float"]])["token"].tolist() == [1, 2]


CHECKS = {
    check.__name__: check
    for check in (
        import_without_ray, distutils_for_thop, numpy_aliases, numpy_scalar_results, counts_in_collector,
        scipy_dok_update, torch_load_of_checkpoints, torch_amp, torch_sparse_tensor, torch_anomaly_detection,
        torch_warnings_about_models,
        pandas_missing_sequences, pandas_fill_nan, pandas_lengths_of_sequences, pandas_read_only_arrays,
    )
}  # fmt: skip


# --- the fresh interpreter --------------------------------------------------------------------------------------------


def outcome(check):
    """What went wrong: warnings and exception; an empty string if the check passed and nothing was shown."""
    problems = []
    with warnings.catch_warnings(record=True) as caught:  # with Python's default filters: no simplefilter here
        try:
            check()
        except Exception as error:
            problems.append(error)
    problems[:0] = [warning.message for warning in caught]
    return "; ".join(f"{type(problem).__name__}: {problem}" for problem in problems)


def main(out):
    torch.set_warn_always(True)  # else PyTorch gives most of its warnings once per process
    compat = load_compat()
    results = {"needed": {patch.name: patch.needed() for patch in compat.PATCHES}, "before": {}, "after": {}}
    for patch in compat.PATCHES:
        check = CHECKS.get(patch.name)
        if check:
            results["before"][patch.name] = outcome(check)
        patch.apply()
        if check:
            results["after"][patch.name] = outcome(check)
    results["all"] = {name: outcome(check) for name, check in CHECKS.items()}
    Path(out).write_text(json.dumps(results), encoding="utf-8")


def python(*args, cwd):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONWARNINGS", None)
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, env=env, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compat")
    python(__file__, folder / "results.json", cwd=folder)
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


# --- the tests --------------------------------------------------------------------------------------------------------


def version(module):
    return tuple(int(part) for part in module.__version__.split("+")[0].split(".")[:2])


# patch: what its check says without it, and whether the libraries installed here need it
WITHOUT = {
    "import_without_ray": ("import of ray halted", True),
    "distutils_for_thop": ("distutils", sys.version_info >= (3, 12) and importlib.util.find_spec("distutils") is None),
    "numpy_aliases": ("has no attribute 'float'", version(np) >= (1, 24)),
    "numpy_scalar_results": ("AssertionError", True),
    "counts_in_collector": ("'int' object has no attribute 'cpu'", True),
    "scipy_dok_update": ("_update", version(scipy) >= (1, 13)),
    "torch_load_of_checkpoints": ("UnpicklingError: Weights only load failed", version(torch) >= (2, 6)),
    "torch_amp": ("FutureWarning", version(torch) >= (2, 4)),
    "torch_sparse_tensor": ("torch.sparse.SparseTensor(indices, values, shape", version(torch) >= (2, 1)),
    "torch_anomaly_detection": ("anomaly detection is on", True),
    "torch_warnings_about_models": ("UserWarning: Creating a tensor from a list of numpy", True),
    "pandas_missing_sequences": ("'float' object has no attribute 'split'", version(pd) >= (3, 0)),
    "pandas_fill_nan": ("AssertionError", version(pd) >= (3, 0)),
    "pandas_lengths_of_sequences": ("ValueError: Length of values", version(pd) >= (3, 0)),
    "pandas_read_only_arrays": ("AssertionError", True),
}


def test_every_patch_has_a_check(results):
    assert list(results["needed"]) == list(CHECKS) == list(WITHOUT)


@pytest.mark.parametrize("name", list(CHECKS))
def test_check_passes_with_the_patch_and_with_all(results, name):
    if name == "distutils_for_thop" and results["after"][name] and importlib.util.find_spec("setuptools") is None:
        pytest.skip("Python 3.12 or later without setuptools: there is no distutils to put in place")
    assert results["after"][name] == "" and results["all"][name] == ""


@pytest.mark.parametrize("name", list(WITHOUT))
def test_check_fails_without_the_patch(results, name):
    message, needed = WITHOUT[name]
    if not needed:
        pytest.skip("the libraries installed here do not need this patch")
    assert message in results["before"][name] and results["needed"][name]


def test_pandas_2_warns_without_the_patches(results):
    if not (2, 2) <= version(pd) < (3, 0):
        pytest.skip("only pandas 2.2 and 2.3 announce the changes of pandas 3")
    for name in ("pandas_missing_sequences", "pandas_fill_nan", "pandas_lengths_of_sequences"):
        assert results["before"][name].startswith("FutureWarning")


def test_importing_the_package_loads_neither_ray_nor_transformers_and_shows_nothing(tmp_path):
    code = (
        "import sys, warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    import recbole_llmd, recbole.quick_start\n"
        "names = {name.split('.')[0] for name in sys.modules}\n"
        "assert not names & {'ray', 'transformers'}, sorted(names)\n"
        "assert not caught, [str(w.message) for w in caught]\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout == "" and done.stderr == ""


def test_tune_is_rays_own_inside_a_ray_run(monkeypatch):
    reported = []
    tune = types.SimpleNamespace(report=lambda **metrics: reported.append(metrics), uniform="ray's")
    ray = types.SimpleNamespace(is_initialized=lambda: True, tune=tune)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.tune", tune)
    stand_in = importlib.import_module("recbole_llmd.compat")._LazyRayTune("ray.tune")
    stand_in.report(recall=0.5)
    ray.is_initialized = lambda: False
    stand_in.report(recall=0.75)
    assert reported == [{"recall": 0.5}] and stand_in.uniform == "ray's"


if __name__ == "__main__":
    main(sys.argv[1])
