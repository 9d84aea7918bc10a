"""A taught loss over a large catalogue, forward and backward: totals and picked scores against two opponents.

    python benchmarks/picked_scores.py --out=benchmarks/records/cost/picked-scores.json

Cross-entropy plus the divergence from a teacher's top items, of ``--samples=1024`` outputs of ``--size=256`` over
``--items=12101`` item vectors with ``--topk=256``, in the bfloat16 products that training uses on such a
processor; ``--repeats=9`` of each, in turns:

- "picked": :class:`~recbole_llmd.distill.picked_scores.PickedScores`;
- "chunks": scores in chunks, each computed again in the backward pass (as for losses that ask for all scores);
- "all at once": PyTorch's autograd over the scores of all samples.

The ratios are medians over turns of processor seconds. OMP_NUM_THREADS says how many threads.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path

from bench_setup import Figures
from record import read_arguments, write_record
from timing import timed


def main() -> None:
    """Measure, and write the record."""
    settings = read_arguments()
    out = Path(settings["out"]).resolve()
    sizes = {"samples": 1024, "size": 256, "items": 12101, "topk": 256, "repeats": 9}
    given = {key: int(settings.get(key, default)) for key, default in sizes.items()}

    import torch

    losses = losses_of(given["samples"], given["size"], given["items"], given["topk"])
    rounds = []
    for _ in range(given["repeats"] + 1):
        timings = {name: timed(loss)[1:] for name, loss in losses.items()}
        rounds.append({name: {"s": s, "processor s": p} for name, (s, p) in timings.items()})
    rounds = rounds[1:]  # the first one finds no memory
    figures: Figures = {"threads": torch.get_num_threads(), "load average": os.getloadavg(), **given}
    for name in losses:
        figures[f"{name}, microseconds a sample"] = 1e6 / given["samples"] * median_of(rounds, name)
    for name in ("chunks", "all at once"):
        ratios = [turn[name]["processor s"] / turn["picked"]["processor s"] for turn in rounds]
        figures[f"{name} / picked"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    print(figures)
    write_record(out, settings, **figures, turns=rounds)


def median_of(rounds: list[Figures], name: str) -> float:
    """The median processor seconds of one way."""
    return statistics.median(turn[name]["processor s"] for turn in rounds)


def losses_of(n: int, size: int, n_items: int, k: int) -> dict[str, Callable[[], None]]:
    """The ways to compute the loss and its gradients."""
    import torch

    from recbole_llmd.distill import chunked_scores
    from recbole_llmd.distill.picked_scores import PickedScores
    from recbole_llmd.distill.scores import Scores
    from recbole_llmd.distill.teacher_cache import TeacherBatch
    from recbole_llmd.llm.backbone import matmul_precision
    from recbole_llmd.trainer.objective import divergence, picked_by

    generator = torch.Generator().manual_seed(2020)
    outputs = torch.randn(n, size, generator=generator).requires_grad_()
    items = (torch.randn(n_items, size, generator=generator) / 10).requires_grad_()
    targets = torch.randint(1, n_items, (n,), generator=generator)
    top_items = torch.rand(n, n_items - 1, generator=generator).topk(k).indices
    top, rest, unused = torch.full((n, k), 0.8 / k).log(), torch.full((n,), 0.2).log(), torch.zeros(n)
    teacher = TeacherBatch(top, top_items, rest, target_p=unused, entropy=unused, target_rank=unused)

    def terms(logits: torch.Tensor, chunk: slice) -> tuple[torch.Tensor, torch.Tensor]:
        scores = Scores(logits)
        return scores.cross_entropy(targets[chunk]), divergence(scores, teacher.at(chunk), 1.0)

    def of_picked() -> torch.Tensor:
        scores = PickedScores(outputs, items, None, targets, picked_by(teacher))
        return scores.cross_entropy().mean() + divergence(scores, teacher, 1.0).mean()

    def in_chunks() -> torch.Tensor:
        return sum_of_means(*chunked_scores.per_sample(terms, outputs, items))

    def at_once() -> torch.Tensor:
        return sum_of_means(*terms(outputs @ items.t(), slice(None)))

    def sum_of_means(own: torch.Tensor, divergences: torch.Tensor) -> torch.Tensor:
        return own.mean() + divergences.mean()

    def trained_by(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def step() -> None:
            outputs.grad = items.grad = None
            with matmul_precision(torch.bfloat16):
                loss().backward()

        return step

    return {
        "picked": trained_by(of_picked),
        "chunks": trained_by(in_chunks),
        "all at once": trained_by(at_once),
    }


if __name__ == "__main__":
    main()
