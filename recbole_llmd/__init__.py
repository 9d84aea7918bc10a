"""recbole-llmd: LLM distillation for RecBole 1.2.1, on today's Python stack.

``import recbole_llmd`` mends RecBole for current NumPy, pandas, SciPy and PyTorch and adds our models to it; plain
RecBole calls then work, such as ``recbole.quick_start.run_recbole(model="LLMD4Rec", dataset="ml-100k")``.
"""

from recbole_llmd import compat

compat.apply()

from recbole_llmd import config, quick_start, registry  # noqa: E402  (RecBole can be imported from here on)

config.install()
registry.install()
quick_start.install()

from recbole_llmd.model.llmd4rec import LLMD4Rec  # noqa: E402
from recbole_llmd.model.llmrec import LLMRec  # noqa: E402
from recbole_llmd.version import __version__  # noqa: E402

__all__ = ["LLMD4Rec", "LLMRec", "__version__"]
