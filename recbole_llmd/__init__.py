"""recbole-llmd: LLM distillation and unlearning for RecBole 1.2.1, on today's Python stack.

``import recbole_llmd`` mends RecBole for current NumPy, pandas, SciPy and PyTorch and adds our models to it; plain
RecBole calls then work, such as ``recbole.quick_start.run_recbole(model="LLMD4Rec", dataset="ml-100k")``. The functions
:func:`run`, :func:`compare`, :func:`unlearn`, :func:`compare_unlearning` and :func:`export` are the commands of
``recbole-llmd``, for a program or a notebook.
"""

from recbole_llmd import thread_waiting

thread_waiting.set_default()  # before PyTorch is loaded

from recbole_llmd import compat  # noqa: E402

compat.apply()

from recbole_llmd import checkpoint_names, config, quick_start, registry  # noqa: E402  (RecBole can be imported now)

config.install()
checkpoint_names.install()
registry.install()
quick_start.install()

from recbole_llmd.unlearning.erasure import suppression  # noqa: E402

suppression.install()

from recbole_llmd.commands import export as export  # noqa: E402
from recbole_llmd.commands import run as run  # noqa: E402
from recbole_llmd.comparison.command import compare as compare  # noqa: E402
from recbole_llmd.errors import LLMDError as LLMDError  # noqa: E402
from recbole_llmd.model.llmd4rec import LLMD4Rec as LLMD4Rec  # noqa: E402
from recbole_llmd.model.llmrec import LLMRec as LLMRec  # noqa: E402
from recbole_llmd.unlearning.command import unlearn as unlearn  # noqa: E402
from recbole_llmd.unlearning.evaluation.command import compare_unlearning as compare_unlearning  # noqa: E402
from recbole_llmd.unlearning.receipt import Receipt as Receipt  # noqa: E402
from recbole_llmd.unlearning.unlearner import Unlearner as Unlearner  # noqa: E402
from recbole_llmd.version import __version__ as __version__  # noqa: E402
