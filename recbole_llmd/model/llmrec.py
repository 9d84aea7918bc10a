"""LLMRec: a transformers decoder with LoRA adapters as a sequential recommender over the whole catalogue."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recbole_llmd.atomic_write import atomic_folder
from recbole_llmd.data.item_text import load_item_texts
from recbole_llmd.distill import chunked_scores
from recbole_llmd.errors import CheckpointError, ModelError, SettingsError
from recbole_llmd.llm import backbone as backbones
from recbole_llmd.llm.prompt import Prompt
from recbole_llmd.llm.text_encoder import max_positions
from recbole_llmd.llm.text_match import TextMatch
from recbole_llmd.llm.text_model import text_vectors
from recbole_llmd.random_state import isolated_random_state

INITIALIZER_RANGE = 0.02  # of the item vectors, as in RecBole's SASRec
PLAIN_ATTENTION_UP_TO = 64  # tokens for which it is faster on a CPU than the fused kernels
HISTORIES_AT_ONCE = 256  # in one pass of the backbone when samples are scored


class LLMRec(SequentialRecommender):
    r"""A language model that reads a history of items and scores every item.

    With text vectors :math:`t_i` and item embeddings :math:`e_i`, an item is :math:`v_i = P t_i + e_i`. A history is
    one soft token per item, :math:`s\,W\,\mathrm{LN}(v_i)` (``llm_input: item``; :math:`s` brings it to the spread of
    the backbone's own input embeddings), or the tokens of the items' texts (``llm_input: prompt``). The causal
    backbone's output :math:`h` at the last token of an item :math:`i` scores the next one, with a residual connection
    from that item: :math:`z_j = \mathrm{LN}(U h + \mathrm{LN}(v_i))^\top v_j`. The model thus starts from items like
    the last one. With item texts, ``llm_match_rank`` adds the match of the texts to the score
    (:class:`~recbole_llmd.llm.text_match.TextMatch`). One pass over a window serves all its positions.

    Inside a distillation ``llm_item_vectors`` can make a history of the vectors :math:`c_i` of the conventional side
    (from LLMD4Rec, arXiv 2505.18120): the soft tokens are then :math:`s\,W\,\mathrm{LN}(C c_i + P t_i)` (``crm``) or
    :math:`s\,W\,\mathrm{LN}(C c_i + v_i)` (``both``). Vectors :math:`v_i` of its own still score the items.

    An item that has a text and is the target of no training sample is known by its text alone: it has no embedding, and
    the loss does not count it among the items that were not chosen.

    >>> from recbole.quick_start import run_recbole  # small: a tiny dataset and language model, small sizes
    >>> result = run_recbole(model="LLMRec", config_dict={**small, "epochs": 2})
    >>> sorted(result["test_result"])
    ['ndcg@10', 'recall@10']

    Args:
        config: its Config.
        dataset: the training dataset.
        crm_vectors: the vectors of another model that it reads, ``[n_items, any size]``; None: it reads its own.
    """

    def __init__(self, config: Config, dataset: SequentialDataset, crm_vectors: Tensor | None = None) -> None:
        super().__init__(config, dataset)
        self.loss_fct = nn.CrossEntropyLoss()
        # The initial weights depend neither on whether the text cache was warm nor on what was built before.
        with isolated_random_state(config["seed"]):
            uncut = functools.cache(functools.partial(_load_uncut, config))
            # In this order: texts are encoded by the uncut model, whose first layers are then the backbone.
            texts = self._build_texts(config, dataset, uncut)
            self._build_backbone(config, uncut, texts)
            self._build_heads(config, dataset)
            self._build_reading(config, crm_vectors)
        self._frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_post_hook(_ignore_frozen)
        self._cached_items: Tensor | None = None

    def _build_texts(self, config: Config, dataset: SequentialDataset, load_uncut: Callable[[], Any]) -> list[str]:
        """The buffer ``text``, ``[n_items, text size]`` or None; returns the texts."""
        texts = load_item_texts(config, dataset)
        vectors = text_vectors(config, texts, load_uncut)
        if vectors is not None:
            # Rows of about unit length: an optimizer step then moves text and embedding alike.
            vectors = vectors / vectors.shape[1] ** 0.5
        self.register_buffer("text", vectors, persistent=False)
        return texts

    def _build_backbone(self, config: Config, load_uncut: Callable[[], Any], texts: list[str]) -> None:
        """The first layers of the language model with LoRA adapters, and what turns a history into its input."""
        self.prompt: Prompt | None = None
        if config["llm_backbone"] == "none":
            if config["llm_input"] == "prompt":
                raise SettingsError(
                    "llm_backbone = 'none': llm_input = 'prompt' gives a backbone tokens to read. Set llm_input: item, "
                    "or llm_backbone: pretrained."
                )
            self.spread, self.backbone = 1.0, backbones.RunningMean(config["llm_embedding_size"])
            return
        model = backbones.keep_first_layers(load_uncut(), config["llm_layers"])
        if config["llm_backbone"] == "random":
            model = backbones.with_random_weights(model)
        tokens = model.get_input_embeddings()
        self.spread = tokens.weight.float().std().item()
        needed = self.max_seq_length
        if config["llm_input"] == "prompt":
            tokenizer = backbones.load_tokenizer(config["llm_model"])
            self.prompt = Prompt(texts, tokenizer, config["llm_item_tokens"], config["dataset"])
            needed = self.prompt.longest(self.max_seq_length)
        else:
            unused = nn.Embedding(1, model.config.hidden_size, dtype=tokens.weight.dtype)
            model.set_input_embeddings(unused.requires_grad_(False))  # frees the vocabulary
        if needed > max_positions(model):
            raise ModelError(
                f"MAX_ITEM_LIST_LENGTH = {self.max_seq_length}: a history can take {needed} tokens, but the model "
                f"reads {max_positions(model)}. Lower MAX_ITEM_LIST_LENGTH or llm_item_tokens."
            )
        if needed <= PLAIN_ATTENTION_UP_TO and config["device"].type == "cpu":
            model.set_attn_implementation("eager")
        self.backbone = backbones.add_lora(model, config)

    def _build_heads(self, config: Config, dataset: SequentialDataset) -> None:
        """Item vectors, projections into and out of the backbone, the match of texts, ``text_only_items``."""
        size, hidden = config["llm_embedding_size"], self.backbone.config.hidden_size
        self.item_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
        self.input_norm = nn.LayerNorm(size)
        self.input_projection = nn.Linear(size, hidden, bias=False)
        self.output_projection = nn.Linear(hidden, size, bias=False)
        self.output_norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config["llm_dropout"])
        nn.init.normal_(self.item_embedding.weight, std=INITIALIZER_RANGE)
        nn.init.zeros_(self.item_embedding.weight[0])
        nn.init.normal_(self.input_projection.weight, std=size**-0.5)
        nn.init.normal_(self.output_projection.weight, std=hidden**-0.5)
        self.match: TextMatch | None = None  # the name stands in checkpoints
        text_only_items = None
        if self.text is not None:
            self.text_projection = nn.Linear(self.text.shape[1], size, bias=False)
            nn.init.normal_(self.text_projection.weight, std=INITIALIZER_RANGE)
            chosen = torch.bincount(dataset.inter_feat[dataset.iid_field], minlength=self.n_items) > 0
            text_only_items = (self.text != 0).any(1) & ~chosen
            text_only_items = text_only_items if text_only_items.any() else None
            if config["llm_match_rank"]:
                self.match = TextMatch(self.text, config["llm_match_rank"], self.max_seq_length)
        self.register_buffer("text_only_items", text_only_items, persistent=False)

    def _build_reading(self, config: Config, crm_vectors: Tensor | None) -> None:
        """What histories are made of: the buffer ``crm_vectors``, ``[n_items, size of the CRM's]``, or None."""
        self.reads_own = crm_vectors is None or config["llm_item_vectors"] == "both"
        # A part of the state: weights are kept, saved and put back with the vectors that they were trained for.
        self.register_buffer("crm_vectors", None if crm_vectors is None else self.brought_to_unit_length(crm_vectors))
        if crm_vectors is not None:
            self.crm_projection = nn.Linear(crm_vectors.shape[1], config["llm_embedding_size"], bias=False)
            nn.init.normal_(self.crm_projection.weight, std=INITIALIZER_RANGE)

    def brought_to_unit_length(self, crm_vectors: Tensor) -> Tensor:
        """Vectors of the CRM as they are read: of root mean square length 1, as the texts are.

        Args:
            crm_vectors: ``[n_items, any size]``; of the padding item and of items known by text alone they say nothing.

        Returns:
            torch.Tensor: of the same shape, without gradient; zero rows for those items.
        """
        known = torch.arange(self.n_items, device=crm_vectors.device) > 0
        if self.text_only_items is not None:
            known &= ~self.text_only_items.to(known.device)
        vectors = crm_vectors.detach().float() * known.unsqueeze(1)
        return vectors / (vectors.square().sum() / known.sum()).sqrt().clamp(min=1e-12)

    def train(self, mode: bool = True) -> LLMRec:
        """As PyTorch's; forgets the cached :meth:`item_vectors`."""
        self._cached_items = None  # the weights may change, or have changed, since the vectors were computed
        return super().train(mode)

    def item_vectors(self) -> Tensor:
        """The vectors :math:`v_i` of all items, ``[n_items, size]``, computed once per evaluation."""
        if self._cached_items is not None:
            return self._cached_items
        vectors = self.item_embedding.weight
        if self.text is not None:
            if self.text_only_items is not None:
                vectors = vectors.masked_fill(self.text_only_items.unsqueeze(1), 0.0)
            vectors = vectors + self.text_projection(self.text)
        if not self.training and not torch.is_grad_enabled():
            self._cached_items = vectors.detach()  # not the embedding itself, which would become a second parameter
        return vectors

    def _read(self, item_seq: Tensor, vectors: Tensor) -> Tensor:
        """What a history is made of, ``[batch, length, size]``."""
        if self.crm_vectors is None:
            return vectors[item_seq]
        read: Tensor = self.crm_projection(self.crm_vectors[item_seq])
        if self.reads_own:
            return read + vectors[item_seq]
        return read if self.text is None else read + self.text_projection(self.text[item_seq])

    @property
    def fixed_vectors(self) -> Tensor | None:
        """The items' vectors in the match, ``[n_items, text size]``, or None without it."""
        return None if self.match is None else self.match.vectors

    def position_outputs(self, item_seq: Tensor, positions: Tensor, vectors: Tensor) -> Tensor:
        """The outputs at the chosen positions of a batch of right-padded histories.

        Args:
            item_seq: item ids, ``[batch, length]``.
            positions: which positions are wanted, bool, ``[batch, length]``.
            vectors: the :meth:`item_vectors`.

        Returns:
            torch.Tensor: what :func:`~recbole_llmd.distill.chunked_scores.scores_of_all_items` makes the scores of,
            with ``vectors`` and the :attr:`fixed_vectors`: ``[n_positions, size (+ text size)]``, in row-major order
            of ``positions``.
        """
        # Histories are padded on the right and the backbone is causal: no attention mask is needed.
        dtype = self.input_dtype
        if self.prompt is None:
            read = self.dropout(self.input_norm(self._read(item_seq, vectors)))
            soft_tokens = self.spread * self.input_projection(read)
            inputs, ends = {"inputs_embeds": soft_tokens.to(dtype)}, None
        else:
            tokens, ends = self.prompt(item_seq)
            inputs = {"input_ids": tokens}
        hidden = self.backbone(**inputs, use_cache=False).last_hidden_state
        if ends is not None:
            hidden = hidden.gather(1, ends.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        read = self.output_projection(self.dropout(hidden[positions].float()))
        outputs = self.output_norm(read + self.dropout(self.input_norm(vectors[item_seq[positions]])))
        if self.match is None:
            return outputs
        return torch.cat([outputs, self.dropout(self.match(item_seq)[positions])], dim=1)

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype of the backbone's frozen weights; float32 where there are none."""
        frozen = (parameter for name, parameter in self.backbone.named_parameters() if "lora_" not in name)
        return next((parameter.dtype for parameter in frozen), torch.float32)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """The output after the last item of each history (:meth:`position_outputs`)."""
        vectors = self.item_vectors()
        order = item_seq_len.argsort()  # like lengths together, so that little padding is computed
        outputs = []
        for chosen in order.split(HISTORIES_AT_ONCE):
            longest = int(item_seq_len[chosen].max())
            last = torch.arange(longest, device=item_seq.device) == (item_seq_len[chosen] - 1).unsqueeze(1)
            outputs.append(self.position_outputs(item_seq[chosen, :longest], last, vectors))
        return torch.cat(outputs)[order.argsort()]

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Cross-entropy over all items but those known by text alone."""
        scores = self.full_sort_predict(interaction)
        if self.text_only_items is not None:
            scores = scores.masked_fill(self.text_only_items, -torch.inf)
        return self.loss_fct(scores, interaction[self.POS_ITEM_ID])

    def predict(self, interaction: Interaction) -> Tensor:
        """The score of one item for each history, ``[batch]``."""
        # Sampled evaluation repeats a history for each of its candidates: it is read once.
        histories, which = torch.unique(interaction[self.ITEM_SEQ], dim=0, return_inverse=True)
        output = self.forward(histories, (histories > 0).sum(dim=1))[which]
        items = interaction[self.ITEM_ID]
        factors = [vectors[items] for vectors in (self.item_vectors(), self.fixed_vectors) if vectors is not None]
        return (output * torch.cat(factors, dim=1)).sum(dim=1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """The scores of all items for each history, ``[batch, n_items]``."""
        output = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return chunked_scores.scores_of_all_items(output, self.item_vectors(), self.fixed_vectors)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the LoRA adapter in peft's format and everything else that is trained as ``head.safetensors``.

        The folder is complete or not there: it is written under a temporary name and renamed.
        """
        with atomic_folder(folder) as temporary:
            temporary.mkdir()
            backbones.save_lora(self.backbone, temporary)
            save_file(
                {name: tensor.contiguous() for name, tensor in self.head_state().items()},
                temporary / "head.safetensors",
            )

    def load_adapter(self, folder: str | Path) -> None:
        """Read what :meth:`save_adapter` wrote.

        Raises:
            CheckpointError: if it was written by a model of another shape.
        """
        backbones.load_lora(self.backbone, folder)
        head = load_file(Path(folder) / "head.safetensors")
        own = self.head_state()
        if {k: v.shape for k, v in head.items()} != {k: v.shape for k, v in own.items()}:
            raise CheckpointError(
                f"{folder} was written by a model with other items or other llm_* settings than this one."
            )
        for name, tensor in own.items():
            tensor.copy_(head[name])
        self._cached_items = None

    def head_state(self) -> dict[str, Tensor]:
        """The trained tensors outside the backbone, and the vectors of the CRM that they were trained for, by name."""
        head = {
            name: parameter.detach() for name, parameter in self.named_parameters() if not name.startswith("backbone.")
        }
        return head if self.crm_vectors is None else {**head, "crm_vectors": self.crm_vectors}


def _load_uncut(config: Config) -> Any:
    return backbones.load_backbone(config["llm_model"], backbones.dtype_of(config["llm_dtype"], config["device"]))


def _drop_frozen(module: LLMRec, state_dict: dict[str, Any], prefix: str, _local_metadata: Any) -> None:
    """Leave the frozen backbone out of checkpoints: it is loaded from ``llm_model``."""
    for name in module._frozen:
        state_dict.pop(prefix + name, None)


def _ignore_frozen(module: LLMRec, incompatible: Any) -> None:
    """Take back the complaint about missing frozen weights."""
    kept = [key for key in incompatible.missing_keys if not any(key.endswith(name) for name in module._frozen)]
    incompatible.missing_keys[:] = kept
    module._cached_items = None
