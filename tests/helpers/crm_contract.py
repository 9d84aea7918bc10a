"""What every CRM must keep to inside LLMD4Rec: inherit :class:`CRMContract` and name the CRM."""

import copy
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_trainer

from recbole_llmd.data.windows import WindowLoader, build_windows, positions_of
from recbole_llmd.distill.chunked_scores import scores_of_all_items
from recbole_llmd.distill.scorers import CRMScorer
from recbole_llmd.distill.teacher_cache import TeacherCache
from recbole_llmd.distill.training_path import SamplePath, WindowPath, crm_path


def compare_with_prefixes(scorer, config, batch):
    """Check a side's scores at every position of a window batch against those of the prefix alone; returns how many."""
    together = scores_of_all_items(*scorer.window_factors(batch))
    places = positions_of(batch)[0].nonzero().tolist()
    assert len(together) == len(places)
    for scores, (window, last) in zip(together, places):
        prefix = torch.zeros(1, config["MAX_ITEM_LIST_LENGTH"], dtype=torch.long)
        prefix[0, : last + 1] = batch["item_id_list"][window, : last + 1]
        alone = scorer.model.full_sort_predict({"item_id_list": prefix, "item_length": torch.tensor([last + 1])})
        torch.testing.assert_close(scores, alone[0], rtol=1e-4, atol=1e-4)
    return len(places)


class CRMContract:
    """Attributes: ``crm``, its extra ``settings``, and whether it must be trained over ``windows``."""

    crm: ClassVar = None
    settings: ClassVar = {}
    windows = False

    @pytest.fixture
    def run_settings(self, fast_distill):
        return {
            **fast_distill,
            "crm_model": self.crm,
            "epochs": 1,
            "crm_warmup_epochs": 1,
            "llm_epochs": 1,
            "llm_warmup_epochs": 1,
            **self.settings,
        }

    @pytest.fixture
    def built(self, build, run_settings):
        config, (train, _, test), model = build(run_settings)
        return config, train, test, model

    def test_path_and_logits(self, built):
        """Logits of a sample are the model's scores; those of a window position are those of its prefix alone."""
        config, train, _, model = built
        scorer = CRMScorer(model.crm, train.dataset, train)
        assert scorer.causal is self.windows
        path = crm_path(model.crm, config, train, 0.0)
        assert type(path) is (WindowPath if self.windows else SamplePath)
        crm = model.crm.eval()
        generator = torch.Generator().manual_seed(1)
        for parameter in crm.parameters():  # initial scores are all near zero; make them differ
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            samples = train.dataset[torch.arange(40)]
            scores = crm.full_sort_predict(samples)
            logits = scorer.sample_logits(samples)
            expected = scores.clamp(min=1e-12).log() if scorer.probabilities else scores
            torch.testing.assert_close(logits, expected)
            if not self.windows:
                return
            for batch in WindowLoader(build_windows(train.dataset), config, 64):
                compare_with_prefixes(scorer, config, batch)

    def test_teacher_cache_is_a_fresh_forward_pass(self, built):
        config, train, _, model = built
        path, dataset = crm_path(model.crm, config, train, 0.0), train.dataset
        cache = TeacherCache(len(dataset), dataset.item_num, 2.0, 0, ".")
        cache.fill(path, "test")
        model.eval()
        batches = (
            WindowLoader(build_windows(dataset), config, 64, shuffle=False)
            if self.windows
            else [dataset[torch.arange(first, min(first + 37, len(dataset)))] for first in range(0, len(dataset), 37)]
        )
        seen = 0
        with torch.no_grad():
            for batch in batches:
                numbers = positions_of(batch)[2] if self.windows else batch["llmd_sample"]
                fresh = torch.log_softmax(scores_of_all_items(*path.factors(batch))[:, 1:] / 2.0, dim=-1)
                torch.testing.assert_close(cache.read(numbers, "cpu").logp, fresh, rtol=1e-4, atol=1e-5)
                seen += len(numbers)
        assert seen == len(dataset)

    def test_only_the_student_changes(self, built, monkeypatch):
        """In each phase the trained side's weights change and the frozen side's do not."""
        from recbole_llmd.trainer.side_trainer import SideTrainer

        config, train, _, model = built
        trainer = get_trainer(config["MODEL_TYPE"], "LLMD4Rec")(config, model)
        changes = []
        fit = SideTrainer.fit

        def watched(side, *args, **kwargs):
            before = {name: copy.deepcopy(s.model.state_dict()) for name, s in trainer.sides.items()}
            result = fit(side, *args, **kwargs)
            changed = {
                name
                for name, s in trainer.sides.items()
                if any(not torch.equal(value, before[name][key]) for key, value in s.model.state_dict().items())
            }
            changes.append((side.side, changed))
            return result

        monkeypatch.setattr(SideTrainer, "fit", watched)
        trainer.fit(train, None, saved=False)
        warm_ups, rounds = [("LLM", {"LLM"}), ("CRM", {"CRM"})], [("CRM", {"CRM"}), ("LLM", {"LLM"})]
        assert changes == warm_ups + rounds

    def test_save_perturb_reload(self, run_settings):
        """A run's checkpoint, read back, gives the run's test result; the same weights perturbed do not."""
        result = run_recbole(config_dict=run_settings)
        files = sorted(Path("saved").glob("LLMD4Rec*.pth"))
        assert len(files) == 1 and "resume" not in files[0].name
        config, model, _, _, _, test = load_data_and_model(str(files[0]))
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        assert dict(trainer.evaluate(test, load_best_model=False)) == dict(result["test_result"])
        llm = trainer.sides["LLM"].evaluate(test, load_best_model=False)
        assert dict(llm) == dict(result["llm"]["test_result"])
        with torch.no_grad():
            for parameter in model.crm.parameters():
                parameter.add_(torch.randn_like(parameter))
        assert dict(trainer.evaluate(test, load_best_model=False)) != dict(result["test_result"])
