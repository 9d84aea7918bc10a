"""The distillation losses against loops in probability space, and their gradients against the analytic ones."""

import math
from types import SimpleNamespace

import pytest
import torch

from recbole_llmd.data.windows import SAMPLE, TARGETS
from recbole_llmd.distill.losses import (
    WEIGHTINGS,
    kl_divergence,
    kl_divergence_topk,
    rescale,
    sample_weights,
    target_rank_weights,
    target_ranks,
)
from recbole_llmd.distill.scores import Scores
from recbole_llmd.distill.teacher_cache import TeacherBatch
from recbole_llmd.distill.training_path import SamplePath, WindowPath
from recbole_llmd.trainer.objective import EpochFigures, Objective, distillation_terms

N, ITEMS = 6, 14
TEMPERATURES = (0.5, 1.0, 3.0)
# Shares of counts and quotients of ranks are float32.
TOLERANCE = {"adaptive": 1e-10, "confidence": 1e-10, "rank": 1e-6, "target_rank": 1e-6, "uniform": 1e-10}


def random_logits(seed, n=N, items=ITEMS, scale=2.0):
    return scale * torch.randn(n, items, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_softmax(row, temperature=1.0):
    powers = [math.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def naive_probabilities(logits, temperature=1.0):
    return [naive_softmax(row, temperature) for row in logits.tolist()]


def naive_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


def merged(p, top):
    """The distribution over the top outcomes and "any other"."""
    return [p[i] for i in top] + [sum(p[i] for i in range(len(p)) if i not in top)]


def naive_rank(row, target):
    return sorted(range(len(row)), key=lambda i: -row[i]).index(target)


def naive_rank_weight(student, teacher):
    if student > teacher:
        weight = 1 + (student - teacher) / max(teacher, 1)
    else:
        weight = 1 - (teacher - student) / max(student, 1)
    return min(max(weight, 0), 2)


def naive_weights(weighting, teacher, student, targets):
    """Sample weights from probabilities at temperature 1, target positions and nothing else."""
    raw = []
    for p, q, y in zip(teacher, student, targets):
        if weighting == "uniform":
            raw.append(1.0)
        elif weighting == "adaptive":
            raw.append(p[y] / (p[y] + q[y]))
        elif weighting == "confidence":
            raw.append(1 - sum(-a * math.log(a) for a in p) / math.log(len(p)))
        elif weighting == "target_rank":
            raw.append(naive_rank_weight(naive_rank(q, y), naive_rank(p, y)))
        else:
            best = [set(sorted(range(len(d)), key=lambda i: -d[i])[:10]) for d in (p, q)]
            raw.append((len(best[0] & best[1]) + 1) / 11)
    mean = sum(raw) / len(raw)
    return [w / mean for w in raw]


def exact_batch(teacher_logits, targets, temperature):
    """A TeacherBatch of all items, from logits without the padding item and 0-based targets."""
    p = torch.tensor(naive_probabilities(teacher_logits), dtype=torch.float64)
    return TeacherBatch(
        logp=torch.tensor(naive_probabilities(teacher_logits, temperature), dtype=torch.float64).log(),
        items=None,
        rest_logp=None,
        target_p=p[torch.arange(len(p)), targets],
        entropy=-(p * p.log()).sum(1),
        target_rank=torch.tensor([naive_rank(row, y) for row, y in zip(p.tolist(), targets.tolist())]),
    )


def topk_batch(teacher_logits, targets, temperature, k):
    exact = exact_batch(teacher_logits, targets, temperature)
    order = exact.logp.argsort(dim=1, descending=True)
    logp = exact.logp.gather(1, order)
    return TeacherBatch(
        logp=logp[:, :k],
        items=order[:, :k],
        rest_logp=logp[:, k:].exp().sum(1).log(),
        target_p=exact.target_p,
        entropy=exact.entropy,
        target_rank=exact.target_rank,
    )


def close(actual, expected, tolerance=1e-10):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double(), expected, rtol=tolerance, atol=tolerance)


# --- KL over all items ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_is_the_double_loop(temperature):
    teacher, student = random_logits(0), random_logits(1)
    p, q = naive_probabilities(teacher, temperature), naive_probabilities(student, temperature)
    expected = [temperature**2 * naive_kl(a, b) for a, b in zip(p, q)]
    backwards = [temperature**2 * naive_kl(b, a) for a, b in zip(p, q)]
    assert min(abs(a - b) for a, b in zip(expected, backwards)) > 1e-3  # the direction shows in these numbers
    close(kl_divergence(torch.tensor(p, dtype=torch.float64).log(), student, temperature), expected)


def test_kl_of_the_teacher_itself_is_zero():
    logits = random_logits(2)
    close(kl_divergence(torch.log_softmax(logits / 2, -1), logits, 2.0), torch.zeros(N))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_gradient_reaches_the_student_alone(temperature):
    teacher, student = random_logits(0).requires_grad_(), random_logits(1).requires_grad_()
    kl_divergence(torch.log_softmax(teacher / temperature, -1), student, temperature).sum().backward()
    p, q = naive_probabilities(teacher, temperature), naive_probabilities(student, temperature)
    close(student.grad, [[temperature * (b - a) for a, b in zip(*rows)] for rows in zip(p, q)])
    assert teacher.grad is None or not teacher.grad.any()


def test_kl_of_certain_distributions_is_finite():
    """A teacher and a student that are sure of different items: exp underflows, the logarithms do not."""
    teacher, student = torch.zeros(1, 5), torch.zeros(1, 5)
    teacher[0, 1] = student[0, 2] = 1000.0
    student.requires_grad_()
    value = kl_divergence(torch.log_softmax(teacher, -1), student, 1.0)
    value.sum().backward()
    close(value, [1000.0])
    close(student.grad, [[0.0, -1.0, 1.0, 0.0, 0.0]])


# --- KL over the top items and the rest -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, 3, 10, ITEMS - 1])
def test_topk_kl_is_that_of_the_merged_distributions(k, temperature):
    teacher, student = random_logits(3), random_logits(4).requires_grad_()
    batch = topk_batch(teacher, torch.zeros(N, dtype=torch.long), temperature, k)
    value = kl_divergence_topk(batch.items, batch.logp, batch.rest_logp, student, temperature)
    p, q = naive_probabilities(teacher, temperature), naive_probabilities(student, temperature)
    tops = [sorted(range(ITEMS), key=lambda i: -row[i])[:k] for row in p]
    close(value, [temperature**2 * naive_kl(merged(a, top), merged(b, top)) for a, b, top in zip(p, q, tops)])

    full = [temperature**2 * naive_kl(a, b) for a, b in zip(p, q)]
    assert all(part <= whole + 1e-12 for part, whole in zip(value.tolist(), full))
    if k < ITEMS - 1:  # merging loses something here, so that the bound is no equality
        assert all(part < whole - 1e-6 for part, whole in zip(value.tolist(), full))

    value.sum().backward()
    gradient = []
    for a, b, top in zip(p, q, tops):
        *_, rest_p = merged(a, top)
        *_, rest_q = merged(b, top)
        gradient.append([temperature * (b[j] - (a[j] if j in top else rest_p * b[j] / rest_q)) for j in range(ITEMS)])
    close(student.grad, gradient)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_topk_kl_of_all_items_is_the_full_one(temperature):
    """With every item on the list nothing is left over: log 0 on both sides, and still neither NaN nor infinity."""
    teacher, student = random_logits(3), random_logits(4).requires_grad_()
    p, q = naive_probabilities(teacher, temperature), naive_probabilities(student, temperature)
    top_logp, items = torch.tensor(p, dtype=torch.float64).log().sort(dim=1, descending=True)
    nothing = torch.full((N,), -torch.inf, dtype=torch.float64)
    value = kl_divergence_topk(items, top_logp, nothing, student, temperature)
    value.sum().backward()
    close(value, [temperature**2 * naive_kl(a, b) for a, b in zip(p, q)])
    close(student.grad, [[temperature * (b - a) for a, b in zip(*rows)] for rows in zip(p, q)])


def test_topk_kl_carries_no_gradient_to_the_teacher():
    top_logp = torch.log(torch.tensor([[0.5, 0.3]])).requires_grad_()
    rest_logp = torch.log(torch.tensor([0.2])).requires_grad_()
    student = torch.zeros(1, 4, requires_grad=True)
    kl_divergence_topk(torch.tensor([[2, 0]]), top_logp, rest_logp, student, 1.0).sum().backward()
    assert student.grad.abs().sum() > 0.1
    assert top_logp.grad is None and rest_logp.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [8.0, 30.0, 200.0])
def test_topk_kl_of_a_student_that_is_sure_of_the_top_items(gap, dtype):
    """The student's mass on the top items rounds to 1, the teacher's is 0.8: value and pull are exact all the same."""
    student = torch.zeros(2, 50, dtype=dtype)
    student[:, :3] = gap
    student[1, 3:] = -gap
    student.requires_grad_()
    p = [0.5, 0.2, 0.1, 0.2]
    logp = torch.tensor([p, p], dtype=dtype).log()
    value = kl_divergence_topk(torch.arange(3).expand(2, 3), logp[:, :3], logp[:, 3], student, 1.0)
    value.sum().backward()
    expected, gradient = [], []
    for row in student.tolist():
        outside = sum(math.exp(z - gap) for z in row[3:])
        q = [1 / (3 + outside)] * 3 + [outside / (3 + outside)]
        expected.append(naive_kl(p, q))
        gradient.append([b - a for a, b in zip(p[:3], q)] + [(q[3] - p[3]) / 47] * 47)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    close(value / torch.tensor(expected, dtype=torch.float64), torch.ones(2), tolerance)
    close(student.grad, gradient, tolerance)


# --- sample weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_are_the_naive_ones(weighting):
    teacher, student = random_logits(5), random_logits(6).requires_grad_()
    targets = torch.tensor([0, 3, 3, 7, 13, 1])
    batch = exact_batch(teacher, targets, 1.0)
    top = batch.logp.topk(10, dim=1).indices
    raw = sample_weights(weighting, student, targets, batch.target_p, batch.entropy, top, batch.target_rank)
    weights = rescale(raw)
    expected = naive_weights(weighting, naive_probabilities(teacher), naive_probabilities(student), targets.tolist())
    close(weights, expected, TOLERANCE[weighting])
    assert weights.double().mean().item() == pytest.approx(1, abs=TOLERANCE[weighting])
    assert not weights.requires_grad
    if weighting != "uniform":
        assert weights.std() > 0.02


def test_adaptive_weight_grows_where_the_teacher_knows_better():
    """The same student everywhere, a teacher ever surer of the target; and the reverse."""
    sure = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    targets = torch.zeros(4, dtype=torch.long)
    weights = rescale(sample_weights("adaptive", torch.zeros(4, 5, dtype=torch.float64), targets, sure))
    assert (weights.diff() > 0.05).all()
    close(weights / weights[0], (sure / (sure + 0.2)) / (0.1 / 0.3))
    student = torch.zeros(4, 5, dtype=torch.float64)
    student[:, 0] = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    assert (sample_weights("adaptive", student, targets, torch.full((4,), 0.3)).diff() < -0.05).all()


def test_confidence_of_a_uniform_teacher_is_zero():
    """Rounding may put the entropy above log n; the weight stays 0, not below."""
    entropy = torch.tensor([math.log(5) + 1e-6, 0.0])
    weights = sample_weights("confidence", torch.zeros(2, 5), torch.zeros(2, dtype=torch.long), torch.ones(2), entropy)
    assert rescale(weights).tolist() == [0.0, 2.0]


def test_rank_counts_common_items_in_any_order():
    teacher_top = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 5, 4]])
    student = torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0, 0.0]]).repeat(3, 1)  # top 3 are 2, 1, 0
    weights = sample_weights("rank", student, torch.zeros(3, dtype=torch.long), torch.ones(3), teacher_top=teacher_top)
    close(rescale(weights), [4 / 7 * 3, 1 / 7 * 3, 2 / 7 * 3], 1e-6)


@pytest.mark.parametrize(
    "student, teacher, weight",
    [
        (3, 3, 1.0),  # as good as each other
        (0, 0, 1.0),
        (5, 4, 1.25),  # the teacher a little better: 1 + 1/4
        (4, 5, 0.75),  # the teacher a little worse: 1 - 1/4
        (4, 2, 2.0),
        (2, 4, 0.0),  # twice as far down: ignored
        (900, 1, 2.0),
        (1, 900, 0.0),
        (1, 0, 2.0),  # the best rank is 0, the divisor 1
        (0, 1, 0.0),
        (300, 200, 1.5),
        (200, 300, 0.5),
    ],
)
def test_target_rank_weights_by_hand(student, teacher, weight):
    assert target_rank_weights(torch.tensor([student]), torch.tensor([teacher])).item() == pytest.approx(weight)


def test_target_ranks_count_the_items_above():
    """Equal scores stand above: whoever tells no items apart does not know the target best."""
    logits = torch.tensor([[4.0, 1.0, 3.0, 2.0], [4.0, 1.0, 3.0, 2.0], [4.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert target_ranks(logits, torch.tensor([0, 1, 2, 3])).tolist() == [0, 3, 3, 3]


def test_the_objective_leaves_the_weights_as_they_are():
    """A teacher that ranks every target last has no say, which rescaling to mean 1 would give it back."""
    _, student, targets = setup(40)
    teacher = student.detach().clone()
    teacher[torch.arange(3), targets[:3]] = -20.0  # knows nothing of the first three
    known = Teacher(teacher, targets, 1.0)
    terms = {}
    for rescaled in (True, False):
        objective = Objective(path_of(Fixed(student), True), known, 1.0, 1.0, "target_rank", rescaled)
        _, terms[rescaled] = objective(batch_of(targets, windows=True))
        weights = objective.figures.weights[0].tolist()
        p, q = (naive_probabilities(logits.detach()[:, 1:]) for logits in (teacher, student))
        raw = [naive_rank_weight(naive_rank(b, y - 1), naive_rank(a, y - 1)) for a, b, y in zip(p, q, targets.tolist())]
        assert 0 < sum(raw) < 6 and 0.0 in raw
        assert weights == pytest.approx([w * (6 / sum(raw) if rescaled else 1) for w in raw], abs=1e-6)
        expected = sum(w * naive_kl(a, b) for w, a, b in zip(weights, p, q)) / N
        assert terms[rescaled].item() == pytest.approx(expected, rel=1e-5)


# --- the objective: weights times divergence, next to the side's own loss ---------------------------------------------


def reference(teacher_logits, student_logits, targets, temperature, weighting):
    """Term, weights and gradient with respect to all logits, weights held constant; column 0 is the padding item."""
    teacher, student = teacher_logits[:, 1:], student_logits[:, 1:]
    weights = naive_weights(
        weighting, naive_probabilities(teacher), naive_probabilities(student), [t - 1 for t in targets.tolist()]
    )
    p, q = naive_probabilities(teacher, temperature), naive_probabilities(student, temperature)
    term = sum(w * temperature**2 * naive_kl(a, b) for w, a, b in zip(weights, p, q)) / len(p)
    gradient = [[0.0] + [w * temperature * (y - x) / len(p) for x, y in zip(a, b)] for w, a, b in zip(weights, p, q)]
    return term, weights, torch.tensor(gradient, dtype=torch.float64)


def setup(seed=7):
    teacher, student = random_logits(seed), random_logits(seed + 1)
    teacher[:, 0] = student[:, 0] = 6.0  # the padding item would take most of the mass
    return teacher, student.requires_grad_(), torch.tensor([1, 5, 13, 2, 9, 9])


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_distillation_term_and_gradient(weighting, temperature):
    teacher, student, targets = setup()
    batch = exact_batch(teacher[:, 1:], targets - 1, temperature)
    divergences, weights = distillation_terms(Scores(student), targets, batch, temperature, weighting)
    weights = rescale(weights)
    term = (weights * divergences).mean()
    term.backward()
    expected, expected_weights, gradient = reference(teacher, student.detach(), targets, temperature, weighting)
    close(term, expected, TOLERANCE[weighting])
    close(weights, expected_weights, TOLERANCE[weighting])
    close(student.grad, gradient, TOLERANCE[weighting])
    assert not weights.requires_grad


class Fixed:
    """A scorer whose logits are given, and which notes whether it was asked for them."""

    def __init__(self, logits):
        self.given = logits
        self.model = SimpleNamespace(POS_ITEM_ID="item_id")
        self.asked_for_logits = []

    def window_factors(self, batch):
        self.asked_for_logits.append(True)
        return self.given, None

    def own_loss(self, batch):
        self.asked_for_logits.append(False)
        return torch.nn.functional.cross_entropy(self.given, batch["item_id"])

    def own_loss_and_logits(self, batch):
        self.asked_for_logits.append(True)
        return torch.nn.functional.cross_entropy(self.given, batch["item_id"]), self.given


def path_of(scorer, windows):
    return WindowPath(scorer, None) if windows else SamplePath(scorer, None, N)


class Teacher:
    """A teacher that knows the samples 0..N-1 in order."""

    def __init__(self, teacher, targets, temperature):
        self.batch, self.order = exact_batch(teacher[:, 1:], targets - 1, temperature), []

    def read(self, numbers, device):
        self.order.append(numbers.tolist())
        return self.batch


def batch_of(targets, windows):
    """The same six samples one by one, or as two windows of which one position each ends no sample."""
    if not windows:
        return {"item_id": targets, SAMPLE: torch.arange(N)}
    numbers = torch.tensor([[-1, 0, 1, 2], [3, 4, 5, -1]])
    return {SAMPLE: numbers, TARGETS: torch.where(numbers >= 0, targets[numbers.clamp(min=0)], 0)}


@pytest.mark.parametrize("windows", [True, False])
def test_objective_is_own_loss_plus_alpha_times_the_term(windows):
    teacher, student, targets = setup(20)
    alpha, temperature = 0.7, 2.0
    known, scorer = Teacher(teacher, targets, temperature), Fixed(student)
    objective = Objective(path_of(scorer, windows), known, alpha, temperature, "adaptive")
    both = objective(batch_of(targets, windows))
    sum(both).backward()

    term, weights, gradient = reference(teacher, student.detach(), targets, temperature, "adaptive")
    q = naive_probabilities(student)
    own = -sum(math.log(row[y]) for row, y in zip(q, targets.tolist())) / N
    close(torch.stack(both), [own, alpha * term])
    own_gradient = [[(v - (j == y)) / N for j, v in enumerate(row)] for row, y in zip(q, targets.tolist())]
    close(student.grad, torch.tensor(own_gradient, dtype=torch.float64) + alpha * gradient)
    assert known.order == [[0, 1, 2, 3, 4, 5]] and scorer.asked_for_logits == [True]

    figures = objective.figures.as_dict()
    spread = (sum((w - 1) ** 2 for w in weights) / N) ** 0.5
    assert figures == pytest.approx(
        {"cross-entropy": own, "distillation": term, "weight mean": 1.0, "weight std": spread}, rel=1e-9
    )


@pytest.mark.parametrize("alpha, taught", [(0.0, True), (1.0, False)])
def test_objective_without_a_teacher_is_the_own_loss(alpha, taught):
    """Nothing is read from the teacher and no logits are asked for, which may cost a second pass."""
    teacher, student, targets = setup(30)
    known, scorer = Teacher(teacher, targets, 1.0), Fixed(student)
    objective = Objective(path_of(scorer, windows=False), known if taught else None, alpha)
    loss = objective(batch_of(targets, windows=False))
    close(loss, torch.nn.functional.cross_entropy(student, targets).item())
    assert known.order == [] and scorer.asked_for_logits == [False]
    assert objective.figures.as_dict() == {"cross-entropy": pytest.approx(loss.item())}


def test_epoch_figures_weigh_batches_by_their_samples():
    figures = EpochFigures()
    figures.add(3, torch.tensor(1.0), torch.tensor(2.0), torch.tensor([0.0, 1.0, 2.0]))
    figures.add(1, torch.tensor(5.0), torch.tensor(6.0), torch.tensor([1.0]))
    assert figures.as_dict() == pytest.approx(
        {"cross-entropy": 2.0, "distillation": 3.0, "weight mean": 1.0, "weight std": 0.5**0.5}
    )
    assert str(figures) == "cross-entropy: 2.0000, distillation: 3.0000, weights: 1.00 ± 0.71"
    assert EpochFigures().as_dict() == {"cross-entropy": 0.0}
