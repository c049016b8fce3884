"""Cuts a small student out of a larger classifier: some of its layers, feed-forward neurons and word pieces."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from models.train.tokenizer import STAND_INS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Shape:
    layers: tuple[int, ...]  # numbers of the large classifier's layers to keep
    intermediate: int
    vocabulary: int
    positions: int
    kept_as: torch.dtype = torch.float16  # the matrices' type in the folder that ships


def neuron_importance(encoder: BertModel, tokenizer: Tokenizer, texts: Sequence[str]) -> list[torch.Tensor]:
    """For every layer, the importance of each feed-forward neuron: mean |activation| times its output weights' norm."""
    sums = [torch.zeros(encoder.config.intermediate_size, device=encoder.device) for _ in encoder.encoder.layer]
    hooks = [
        layer.intermediate.register_forward_hook(
            lambda _module, _inputs, output, total=total: total.add_(output.float().abs().mean(dim=(0, 1)))
        )
        for layer, total in zip(encoder.encoder.layer, sums, strict=True)
    ]
    with torch.inference_mode():
        for one in tokenizer.encode_batch_fast(list(texts)):
            encoder(torch.tensor([one.ids[:128]], device=encoder.device))
    for hook in hooks:
        hook.remove()
    return [
        total * layer.output.dense.weight.detach().norm(dim=0)
        for total, layer in zip(sums, encoder.encoder.layer, strict=True)
    ]


def cut(
    whole: BertForSequenceClassification,
    base: Tokenizer,
    vocabulary: Sequence[str],
    shape: Shape,
    sample: Sequence[str],
) -> BertForSequenceClassification:
    """The student before training, with the weights of `whole` in every part that it keeps. `base`: its tokenizer."""
    importance = neuron_importance(whole.bert.eval(), base, sample)
    config: BertConfig = copy.deepcopy(whole.config)
    config.num_hidden_layers = len(shape.layers)
    config.intermediate_size = shape.intermediate
    config.vocab_size = len(vocabulary)
    config.max_position_embeddings = shape.positions
    student = BertForSequenceClassification(config).to(whole.device)
    with torch.no_grad():
        ours, theirs = student.bert, whole.bert
        table = theirs.embeddings.word_embeddings.weight
        known = base.get_vocab()
        for index, piece in enumerate(vocabulary):
            alike = [known[word] for word in STAND_INS.get(piece, [piece])]
            ours.embeddings.word_embeddings.weight[index] = table[alike].mean(dim=0)
        positions = theirs.embeddings.position_embeddings.weight[: shape.positions]
        ours.embeddings.position_embeddings.weight.copy_(positions)
        ours.embeddings.token_type_embeddings.load_state_dict(theirs.embeddings.token_type_embeddings.state_dict())
        ours.embeddings.LayerNorm.load_state_dict(theirs.embeddings.LayerNorm.state_dict())
        ours.pooler.load_state_dict(theirs.pooler.state_dict())
        student.classifier.load_state_dict(whole.classifier.state_dict())
        for layer, number in zip(ours.encoder.layer, shape.layers, strict=True):
            keep = importance[number].topk(shape.intermediate).indices.sort().values
            state = copy.deepcopy(theirs.encoder.layer[number].state_dict())
            state["intermediate.dense.weight"] = state["intermediate.dense.weight"][keep]
            state["intermediate.dense.bias"] = state["intermediate.dense.bias"][keep]
            state["output.dense.weight"] = state["output.dense.weight"][:, keep]
            layer.load_state_dict(state)
    return student
