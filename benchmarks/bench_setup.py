"""What the benchmarks measure: RecBole's Config, loaders and trainers, and ours, built as a run builds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataloader import AbstractDataLoader as Loader
    from recbole.trainer import Trainer

    from recbole_llmd.trainer.llmd4rec import LLMD4RecTrainer
    from recbole_llmd.trainer.side_trainer import SideTrainer

Settings = dict[str, Any]  # RecBole's config_dict; a benchmark's own arguments are taken out of it
Figures = dict[str, Any]  # of a record


def build(settings: Settings, model: str) -> tuple[Config, tuple[Loader, Loader, Loader]]:
    """Config and RecBole's loaders ``(train, valid, test)``, as ``run_recbole`` makes them."""
    import recbole_llmd  # noqa: F401  (before RecBole, which it mends)

    # isort: split
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import init_seed

    config = Config(config_dict={"show_progress": False, **settings, "model": model, "state": "ERROR"})
    init_seed(config["seed"], config["reproducibility"])
    loaders = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    return config, loaders


def facts(config: Config, train: Loader) -> Figures:
    """What a record says of the data and the settings."""
    from recbole_llmd.comparison.cell import settings_of

    sizes = {"users": train.dataset.user_num - 1, "items": train.dataset.item_num - 1, "samples": len(train.dataset)}
    return {"data": sizes, "seed": config["seed"], "config": settings_of(config)}


def recbole_trainer(config: Config, train: Loader) -> Trainer:
    """RecBole's own trainer of a new model."""
    from recbole.utils import get_model, get_trainer

    model = get_model(config["model"])(config, train.dataset).to(config["device"])
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model)


def crm_side(config: Config, train: Loader) -> SideTrainer:
    """A new CRM as one side of LLMD4Rec, ready to be trained alone over windows."""
    from recbole_llmd.config import load_properties
    from recbole_llmd.distill.training_path import crm_path
    from recbole_llmd.trainer.side_trainer import SideTrainer

    model = recbole_trainer(config, train).model
    side = SideTrainer(config, model, "CRM")
    side.prepare(crm_path(model, config, train, load_properties("LLMD4Rec")["crm_window_overlap"]))
    return side


def both_sides(config: Config, train: Loader) -> LLMD4RecTrainer:
    """A new LLMD4Rec's trainer with its sides ready to be trained, as its ``fit`` makes them."""
    trainer: LLMD4RecTrainer = recbole_trainer(config, train)
    trainer.prepare(train)
    return trainer


def train_alone(side: SideTrainer, epochs: int, train: Loader, valid: Loader) -> None:
    """Train a side without a teacher, to its early stop; it has its best weights then."""
    from recbole_llmd.trainer.phase_run import FitArguments, PhaseRun

    fit = FitArguments(train, valid, verbose=False)
    side.run_phase(PhaseRun(index=0, label=side.side, epochs=epochs, objective=side.own_objective(), fit=fit))
