"""Mechanical mutants of the references: one small edit of the syntax tree each, and the survivors explained.

A mutant is killed when the check does not pass it. Each survivor is listed in EQUIVALENT with the reason; a
survivor that is not listed, and an entry that is no survivor, fail `test_mechanical.py`.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attncourse import attention, bahdanau
from attncourse.checks import bahdanau as exercises
from attncourse.checks import (
    causal,
    choosing,
    cross_attention,
    execution,
    gqa,
    kv_cache,
    linear,
    luong,
    mla,
    mqa,
    multi_head,
    positions,
    self_attention,
    sliding_window,
    sparse,
    start,
)
from tests.edits import edits

# What is mutated for each exercise: the reference, or the functions and methods of it that a learner writes.
PARTS: dict[str, tuple[tuple[Any, tuple[str, ...]], ...]] = {
    "start/pair_scores": ((start.pair_scores, ()),),
    "start/softmax": ((start.softmax_with_temperature, ()),),
    "start/padding_mask": ((start.mask_from_lengths, ()),),
    "start/head_contexts": ((start.head_contexts, ()),),
    "bahdanau/additive_score": ((exercises.additive_score, ()),),
    "bahdanau/masked_softmax": ((exercises.masked_softmax, ()),),
    "bahdanau/context_vector": ((exercises.context_vector, ()),),
    "bahdanau/attention": (
        (bahdanau.AdditiveAttention, ("forward",)),
        (bahdanau.additive_attention, ()),
        (bahdanau.additive_scores, ()),
        (attention.masked_softmax, ()),
    ),
    "bahdanau/decoder": ((exercises.AttentionDecoder, ("begin", "step")),),
    "luong/general_score": ((luong.general_score, ()),),
    "luong/concat_score": ((luong.concat_score, ()),),
    "luong/attentional_vector": ((luong.attentional_vector, ()),),
    "luong/local_weights": ((luong.local_weights, ()),),
    "luong/straight_through": ((luong.straight_through, ()),),
    "self_attention/project_tokens": ((self_attention.project_tokens, ()),),
    "self_attention/scaled_scores": ((self_attention.scaled_scores, ()),),
    "self_attention/masked_attention": ((self_attention.masked_attention, ()),),
    "self_attention/OneHead": ((self_attention.OneHead, ("forward",)),),
    "cross_attention/cross_scores": ((cross_attention.cross_scores, ()),),
    "cross_attention/attend_to_context": ((cross_attention.attend_to_context, ()),),
    "cross_attention/image_patches": ((cross_attention.image_patches, ()),),
    "cross_attention/CrossHead": ((cross_attention.CrossHead, ("forward",)),),
    "causal/look_back_mask": ((causal.look_back_mask, ()),),
    "causal/look_back_attention": ((causal.look_back_attention, ()),),
    "causal/shifted_loss": ((causal.shifted_loss, ()),),
    "causal/ragged_mask": ((causal.ragged_mask, ()),),
    "multi_head/split_into_heads": ((multi_head.split_into_heads, ()),),
    "multi_head/join_heads": ((multi_head.join_heads, ()),),
    "multi_head/all_heads": ((multi_head.all_heads, ()),),
    "multi_head/keep_heads": ((multi_head.keep_heads, ()),),
    "positions/sine_table": ((positions.sine_table, ()),),
    "positions/rotate_pairs": ((positions.rotate_pairs, ()),),
    "positions/slope_bias": ((positions.slope_bias, ()),),
    "positions/rotary_scores": ((positions.rotary_scores, ()),),
    "sliding_window/near_mask": ((sliding_window.near_mask, ()),),
    "sliding_window/neighbour_blocks": ((sliding_window.neighbour_blocks, ()),),
    "sliding_window/window_by_blocks": ((sliding_window.window_by_blocks, ()),),
    "sliding_window/slot_positions": ((sliding_window.slot_positions, ()),),
    "sliding_window/retained_tokens": ((sliding_window.retained_tokens, ()),),
    "sparse/strided_pattern": ((sparse.strided_pattern, ()),),
    "sparse/stride_classes": ((sparse.stride_classes, ()),),
    "sparse/merge_parts": ((sparse.merge_parts, ()),),
    "sparse/global_pattern": ((sparse.global_pattern, ()),),
    "sparse/count_hops": ((sparse.count_hops, ()),),
    "linear/kernel_attention": ((linear.kernel_attention, ()),),
    "linear/update_state": ((linear.update_state, ()),),
    "linear/chunk_attention": ((linear.chunk_attention, ()),),
    "linear/random_features": ((linear.random_features, ()),),
    "linear/orthogonal_rows": ((linear.orthogonal_rows, ()),),
    "kv_cache/append_tokens": ((kv_cache.append_tokens, ()),),
    "kv_cache/decode_chunk": ((kv_cache.decode_chunk, ()),),
    "kv_cache/cache_bytes": ((kv_cache.cache_bytes, ()),),
    "kv_cache/quantize_cache": ((kv_cache.quantize_cache, ()),),
    "mqa/split_one_key": ((mqa.split_one_key, ()),),
    "mqa/rows_of_heads": ((mqa.rows_of_heads, ()),),
    "mqa/multi_query": ((mqa.multi_query, ()),),
    "mqa/step_intensity": ((mqa.step_intensity, ()),),
    "gqa/repeat_kv": ((gqa.repeat_kv, ()),),
    "gqa/group_queries": ((gqa.group_queries, ()),),
    "gqa/grouped_attention": ((gqa.grouped_attention, ()),),
    "gqa/pool_heads": ((gqa.pool_heads, ()),),
    "gqa/heads_in_budget": ((gqa.heads_in_budget, ()),),
    "mla/cached_numbers": ((mla.cached_numbers, ()),),
    "mla/split_up_projection": ((mla.split_up_projection, ()),),
    "mla/absorb_query": ((mla.absorb_query, ()),),
    "mla/absorbed_scores": ((mla.absorbed_scores, ()),),
    "mla/absorbed_values": ((mla.absorbed_values, ()),),
    "execution/merge_softmaxes": ((execution.merge_softmaxes, ()),),
    "execution/online_attention": ((execution.online_attention, ()),),
    "execution/score_gradients": ((execution.score_gradients, ()),),
    "execution/read_blocks": ((execution.read_blocks, ()),),
    "execution/blocks_needed": ((execution.blocks_needed, ()),),
    "choosing/roofline_ms": ((choosing.roofline_ms, ()),),
    "choosing/largest_batch": ((choosing.largest_batch, ()),),
    "choosing/matched_width": ((choosing.matched_width, ()),),
    "choosing/pareto_front": ((choosing.pareto_front, ()),),
    "choosing/paired_difference": ((choosing.paired_difference, ()),),
}

EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "start/softmax",
        "softmax_with_temperature: exponentials = torch.exp(scaled - scaled.amax(-1, keepdim=True)) -> "
        "exponentials = torch.exp(scaled)",
    ): "only advice: the division cancels what is subtracted; without it large scores overflow",
    (
        "start/softmax",
        "softmax_with_temperature: exponentials = torch.exp(scaled - scaled.amax(-1, keepdim=True)) -> "
        "exponentials = torch.exp(scaled + scaled.amax(-1, keepdim=True))",
    ): "only advice: the division cancels what is added; large scores overflow sooner",
    (
        "start/softmax",
        "softmax_with_temperature: exponentials = torch.exp(scaled - scaled.amax(-1, keepdim=True)) -> "
        "exponentials = torch.exp(scaled - -1)",
    ): "only advice: the division cancels any constant; this one does not keep large scores from overflowing",
    (
        "start/softmax",
        "softmax_with_temperature: exponentials = torch.exp(scaled - scaled.amax(-1, keepdim=True)) -> "
        "exponentials = torch.exp(scaled - scaled.amax(keepdim=True))",
    ): "only advice: any number may be subtracted from a row; the largest of all rows makes low rows underflow",
    (
        "start/head_contexts",
        "head_contexts: by_head = weights @ values.transpose(1, 2) -> by_head = weights @ values.transpose(2, 1)",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "start/head_contexts",
        "head_contexts: return by_head.transpose(1, 2) -> return by_head.transpose(2, 1)",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "bahdanau/additive_score",
        "additive_score: hidden = torch.tanh(projected_query[:, :, None, :] + projected_keys[:, None, :, :]) -> "
        "hidden = torch.tanh(projected_keys[:, None, :, :] + projected_query[:, :, None, :])",
    ): "a sum does not depend on the order of its terms",
    (
        "bahdanau/additive_score",
        "additive_score: hidden = torch.tanh(projected_query[:, :, None, :] + projected_keys[:, None, :, :]) -> "
        "hidden = torch.tanh(projected_query[:, :, None] + projected_keys[:, None, :, :])",
    ): "an index leaves the axes it does not name as they are: [:, :, None] is [:, :, None, :]",
    (
        "bahdanau/additive_score",
        "additive_score: hidden = torch.tanh(projected_query[:, :, None, :] + projected_keys[:, None, :, :]) -> "
        "hidden = torch.tanh(projected_query[:, :, None, :] + projected_keys[:, None, :])",
    ): "an index leaves the axes it does not name as they are: [:, None, :] is [:, None, :, :]",
    (
        "bahdanau/masked_softmax",
        "masked_softmax: largest = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min) -> "
        "largest = scores.amax(keepdim=True).clamp(min=torch.finfo(scores.dtype).min)",
    ): "only advice: any number may be subtracted from a row; the largest of all rows makes low rows underflow",
    (
        "bahdanau/masked_softmax",
        "masked_softmax: largest = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min) -> "
        "largest = mask.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)",
    ): "only advice: subtracts 1 (0 in empty rows), which the division cancels; large scores overflow, and in "
    "float64 the bounds of float32 do not fit",
    (
        "bahdanau/masked_softmax",
        "masked_softmax: exponentials = torch.exp(scores - largest) -> exponentials = torch.exp(scores)",
    ): "only advice: the division cancels what is subtracted; without it large scores overflow",
    (
        "bahdanau/masked_softmax",
        "masked_softmax: exponentials = torch.exp(scores - largest) -> exponentials = torch.exp(scores + largest)",
    ): "only advice: the division cancels what is added; large scores overflow sooner",
    (
        "bahdanau/attention",
        "additive_scores: hidden = torch.tanh(query[:, :, None] + keys[:, None]) -> "
        "hidden = torch.tanh(keys[:, None] + query[:, :, None])",
    ): "a sum does not depend on the order of its terms",
    (
        "bahdanau/attention",
        "masked_softmax: return scores.masked_fill(~mask, float('-inf')).softmax(-1).masked_fill(~mask, 0.0) -> "
        "return scores.masked_fill(~mask, float('-1e9')).softmax(-1).masked_fill(~mask, 0.0)",
    ): "the last fill makes forbidden weights, and so empty rows, exactly 0; scores are bounded by the sum of |v|, "
    "so that exp(-1e9) takes no share elsewhere",
    (
        "bahdanau/decoder",
        "AttentionDecoder.step: self.state = self.cell(torch.cat([embedding, context[:, 0]], dim=-1), self.state) -> "
        "self.state = self.cell(torch.cat([embedding, context[:, 0]], dim=1), self.state)",
    ): "of two axes, 1 is the last",
    (
        "bahdanau/decoder",
        "AttentionDecoder.step: self.state = self.cell(torch.cat([embedding, context[:, 0]], dim=-1), self.state) -> "
        "self.state = self.cell(torch.cat([embedding, context[:, -1]], dim=-1), self.state)",
    ): "there is one query, so the first context is the last",
    (
        "bahdanau/decoder",
        "AttentionDecoder.step: return (self.state, weights[:, 0]) -> return (self.state, weights[:, -1])",
    ): "there is one query, so the first row of weights is the last",
    (
        "luong/general_score",
        "general_score: return query @ weight @ keys.transpose(1, 2) -> return query @ weight @ keys.transpose(2, 1)",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "luong/local_weights",
        "local_weights: distance = torch.arange(scores.shape[-1]).to(scores) - centre[..., None] -> "
        "distance = centre[..., None] - torch.arange(scores.shape[-1]).to(scores)",
    ): "only the distance's size and its square are used",
    (
        "luong/local_weights",
        "local_weights: distance = torch.arange(scores.shape[-1]).to(scores) - centre[..., None] -> "
        "distance = torch.arange(scores.shape[-1]) - centre[..., None]",
    ): "whole numbers minus the centre take the centre's dtype, which is that of the scores",
    (
        "luong/local_weights",
        "local_weights: distance = torch.arange(scores.shape[-1]).to(scores) - centre[..., None] -> "
        "distance = torch.arange(scores.shape[-1]).to(centre) - centre[..., None]",
    ): "scores and centre have one dtype",
    (
        "luong/local_weights",
        "local_weights: weights = scores.masked_fill(~near, float('-inf')).softmax(-1) -> "
        "weights = scores.masked_fill(~near, float('-1e9')).softmax(-1)",
    ): "there is always a key inside, beside which exp(-1e9) is exactly 0",
    (
        "luong/local_weights",
        "local_weights: sigma = (window - 1) / 2 -> sigma = (1 - window) / 2",
    ): "only the square of sigma is used",
    (
        "luong/local_weights",
        "local_weights: return weights * torch.exp(-distance ** 2 / (2 * sigma ** 2)) -> "
        "return torch.exp(-distance ** 2 / (2 * sigma ** 2)) * weights",
    ): "a product does not depend on the order of its factors",
    (
        "luong/local_weights",
        "local_weights: return weights * torch.exp(-distance ** 2 / (2 * sigma ** 2)) -> "
        "return weights * torch.exp(-distance ** 2 / (sigma ** 2 * 2))",
    ): "a product does not depend on the order of its factors",
    (
        "luong/straight_through",
        "straight_through: return hard + weights - weights.detach() -> return weights + hard - weights.detach()",
    ): "a sum does not depend on the order of its terms",
    (
        "self_attention/scaled_scores",
        "scaled_scores: products = query @ key.transpose(1, 2) -> products = query @ key.transpose(2, 1)",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "self_attention/scaled_scores",
        "scaled_scores: return products / query.shape[-1] ** 0.5 -> return products / key.shape[-1] ** 0.5",
    ): "a query and a key have one size",
    (
        "self_attention/masked_attention",
        "masked_attention: scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 -> "
        "scores = query @ key.transpose(2, 1) / query.shape[-1] ** 0.5",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "self_attention/masked_attention",
        "masked_attention: scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 -> "
        "scores = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5",
    ): "a query and a key have one size",
    (
        "self_attention/masked_attention",
        "masked_attention: weights = scores.masked_fill(~mask, float('-inf')).softmax(-1).masked_fill(~mask, 0.0) -> "
        "weights = scores.masked_fill(~mask, float('-1e9')).softmax(-1).masked_fill(~mask, 0.0)",
    ): "the last fill makes forbidden weights, and so empty rows, exactly 0; beside scores of a few hundred "
    "exp(-1e9) takes no share",
    (
        "self_attention/OneHead",
        "OneHead.forward: scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 -> "
        "scores = query @ key.transpose(2, 1) / query.shape[-1] ** 0.5",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "self_attention/OneHead",
        "OneHead.forward: weights = scores.masked_fill(~mask, float('-inf')).softmax(-1).masked_fill(~mask, 0.0) -> "
        "weights = scores.masked_fill(~mask, float('-1e9')).softmax(-1).masked_fill(~mask, 0.0)",
    ): "the last fill makes forbidden weights, and so empty rows, exactly 0; beside scores of this size exp(-1e9) "
    "takes no share",
    (
        "cross_attention/cross_scores",
        "cross_scores: return query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 -> "
        "return query @ key.transpose(2, 1) / query.shape[-1] ** 0.5",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "cross_attention/attend_to_context",
        "attend_to_context: real = torch.arange(key.shape[1]) < context_lengths[:, None] -> "
        "real = torch.arange(value.shape[1]) < context_lengths[:, None]",
    ): "there are as many values as keys",
    (
        "cross_attention/attend_to_context",
        "attend_to_context: scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 -> "
        "scores = query @ key.transpose(2, 1) / query.shape[-1] ** 0.5",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "cross_attention/attend_to_context",
        "attend_to_context: scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 -> "
        "scores = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5",
    ): "a query and a key have one size",
    (
        "cross_attention/attend_to_context",
        "attend_to_context: weights = scores.masked_fill(padding, float('-inf')).softmax(-1)"
        ".masked_fill(padding, 0.0) -> "
        "weights = scores.masked_fill(padding, float('-1e9')).softmax(-1).masked_fill(padding, 0.0)",
    ): "the last fill makes the padding's weights, and so empty rows, exactly 0; beside scores of this size exp(-1e9) "
    "takes no share",
    (
        "cross_attention/image_patches",
        "image_patches: return by_patch.reshape(B, rows * columns, C * patch * patch) -> "
        "return by_patch.reshape(B, columns * rows, C * patch * patch)",
    ): "a product does not depend on the order of its factors",
    (
        "cross_attention/image_patches",
        "image_patches: return by_patch.reshape(B, rows * columns, C * patch * patch) -> "
        "return by_patch.reshape(B, rows * columns, patch * (C * patch))",
    ): "a product does not depend on the order of its factors",
    (
        "cross_attention/image_patches",
        "image_patches: return by_patch.reshape(B, rows * columns, C * patch * patch) -> "
        "return by_patch.reshape(B, rows * columns, patch * C * patch)",
    ): "a product does not depend on the order of its factors",
    (
        "cross_attention/CrossHead",
        "CrossHead.forward: scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 -> "
        "scores = query @ key.transpose(2, 1) / query.shape[-1] ** 0.5",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "cross_attention/CrossHead",
        "CrossHead.forward: weights = scores.masked_fill(padding, float('-inf')).softmax(-1)"
        ".masked_fill(padding, 0.0) -> "
        "weights = scores.masked_fill(padding, float('-1e9')).softmax(-1).masked_fill(padding, 0.0)",
    ): "the last fill makes the padding's weights, and so empty rows, exactly 0; beside scores of this size exp(-1e9) "
    "takes no share",
    (
        "causal/look_back_attention",
        "look_back_attention: T, S = (query.shape[1], key.shape[1]) -> T, S = (query.shape[1], value.shape[1])",
    ): "there are as many keys as values",
    (
        "causal/look_back_attention",
        "look_back_attention: scores = query @ key.mT / query.shape[-1] ** 0.5 -> "
        "scores = query @ key.mT / key.shape[-1] ** 0.5",
    ): "a query and a key have one size",
    (
        "causal/look_back_attention",
        "look_back_attention: later = torch.ones(T, S).triu(S - T + 1).bool() -> "
        "later = torch.ones(T, S).triu(1 + (S - T)).bool()",
    ): "a sum does not depend on the order of its terms",
    (
        "causal/look_back_attention",
        "look_back_attention: return scores.masked_fill(later, float('-inf')).softmax(-1) @ value -> "
        "return scores.masked_fill(later, float('-1e9')).softmax(-1) @ value",
    ): "every query sees a key, itself, beside which exp(-1e9) is exactly 0",
    (
        "causal/shifted_loss",
        "shifted_loss: logs = logits[:, :-1].log_softmax(-1) -> logs = logits.log_softmax(-1)",
    ): "gather reads as many places as it is given tokens, so the last logits stay unread",
    (
        "causal/shifted_loss",
        "shifted_loss: logs = logits[:, :-1].log_softmax(-1) -> logs = logits[:,].log_softmax(-1)",
    ): "gather reads as many places as it is given tokens, so the last logits stay unread",
    (
        "causal/shifted_loss",
        "shifted_loss: return -logs.gather(-1, wanted).squeeze(-1).mean(-1) -> "
        "return -logs.gather(-1, wanted).squeeze(-1).mean(1)",
    ): "of two axes, 1 is the last",
    (
        "causal/ragged_mask",
        "ragged_mask: return causal & real[:, None] -> return causal * real[:, None]",
    ): "the product of booleans is their conjunction",
    (
        "causal/ragged_mask",
        "ragged_mask: return causal & real[:, None] -> return real[:, None] & causal",
    ): "a conjunction does not depend on the order of its terms",
    (
        "multi_head/split_into_heads",
        "split_into_heads: return x.reshape(B, T, n_heads, D).transpose(1, 2) -> "
        "return x.reshape(B, T, n_heads, D).transpose(2, 1)",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "multi_head/join_heads",
        "join_heads: return x.transpose(1, 2).reshape(B, T, H * D) -> return x.transpose(1, 2).reshape(B, T, D * H)",
    ): "a product does not depend on the order of its factors",
    (
        "multi_head/join_heads",
        "join_heads: return x.transpose(1, 2).reshape(B, T, H * D) -> return x.transpose(2, 1).reshape(B, T, H * D)",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "multi_head/all_heads",
        "all_heads: weights = scores.masked_fill(~mask[:, None], float('-inf')).softmax(-1) -> "
        "weights = scores.masked_fill(~mask[:, None], float('-1e9')).softmax(-1)",
    ): "every query has an allowed key, beside which exp(-1e9) is exactly 0",
    (
        "multi_head/keep_heads",
        "keep_heads: kept = heads * keep[:, None, None] -> kept = keep[:, None, None] * heads",
    ): "a product does not depend on the order of its factors",
    (
        "positions/sine_table",
        "sine_table: frequencies = 10000.0 ** (-torch.arange(0, d_model, 2) / d_model) -> "
        "frequencies = 10001.0 ** (-torch.arange(0, d_model, 2) / d_model)",
    ): "over a dozen positions a base larger by one part in ten thousand changes no sine by more than the check allows",
    (
        "positions/sine_table",
        "sine_table: angles = torch.arange(n_positions)[:, None] * frequencies -> "
        "angles = frequencies * torch.arange(n_positions)[:, None]",
    ): "a product does not depend on the order of its factors",
    (
        "positions/rotate_pairs",
        "rotate_pairs: frequencies = base ** (-torch.arange(0, D, 2).to(x) / D) -> "
        "frequencies = base ** (-torch.arange(0, D, 2) / D)",
    ): "dividing whole numbers gives float32: in float64 the angles are then off by one in ten million, and the "
    "check allows more",
    (
        "positions/rotate_pairs",
        "rotate_pairs: frequencies = base ** (-torch.arange(0, D, 2).to(x) / D) -> "
        "frequencies = base ** (-torch.arange(0, D, 2).to(positions) / D)",
    ): "dividing whole numbers gives float32: in float64 the angles are then off by one in ten million, and the "
    "check allows more",
    (
        "positions/rotate_pairs",
        "rotate_pairs: angles = positions[..., None] * frequencies -> angles = frequencies * positions[..., None]",
    ): "a product does not depend on the order of its factors",
    (
        "positions/rotate_pairs",
        "rotate_pairs: turned = (first * angles.cos() - second * angles.sin(), first * angles.sin() + second * "
        "angles.cos()) -> turned = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * "
        "angles.sin())",
    ): "a sum does not depend on the order of its terms",
    (
        "positions/rotate_pairs",
        "rotate_pairs: turned = (first * angles.cos() - second * angles.sin(), first * angles.sin() + second * "
        "angles.cos()) -> turned = (angles.cos() * first - second * angles.sin(), first * angles.sin() + second * "
        "angles.cos())",
    ): "a product does not depend on the order of its factors",
    (
        "positions/rotate_pairs",
        "rotate_pairs: turned = (first * angles.cos() - second * angles.sin(), first * angles.sin() + second * "
        "angles.cos()) -> turned = (first * angles.cos() - angles.sin() * second, first * angles.sin() + second * "
        "angles.cos())",
    ): "a product does not depend on the order of its factors",
    (
        "positions/rotate_pairs",
        "rotate_pairs: turned = (first * angles.cos() - second * angles.sin(), first * angles.sin() + second * "
        "angles.cos()) -> turned = (first * angles.cos() - second * angles.sin(), angles.sin() * first + second * "
        "angles.cos())",
    ): "a product does not depend on the order of its factors",
    (
        "positions/rotate_pairs",
        "rotate_pairs: turned = (first * angles.cos() - second * angles.sin(), first * angles.sin() + second * "
        "angles.cos()) -> turned = (first * angles.cos() - second * angles.sin(), first * angles.sin() + "
        "angles.cos() * second)",
    ): "a product does not depend on the order of its factors",
    (
        "positions/slope_bias",
        "slope_bias: slopes = 2.0 ** (-8 * torch.arange(1, n_heads + 1) / n_heads) -> "
        "slopes = 2.0 ** (torch.arange(1, n_heads + 1) * -8 / n_heads)",
    ): "a product does not depend on the order of its factors",
    (
        "positions/slope_bias",
        "slope_bias: slopes = 2.0 ** (-8 * torch.arange(1, n_heads + 1) / n_heads) -> "
        "slopes = 2.0 ** (-8 * torch.arange(1, 1 + n_heads) / n_heads)",
    ): "a sum does not depend on the order of its terms",
    (
        "positions/slope_bias",
        "slope_bias: distance = (torch.arange(S - T, S)[:, None] - torch.arange(S)).abs() -> "
        "distance = (torch.arange(S) - torch.arange(S - T, S)[:, None]).abs()",
    ): "the distance has no sign",
    (
        "positions/slope_bias",
        "slope_bias: return -slopes[:, None, None] * distance -> return distance * -slopes[:, None, None]",
    ): "a product does not depend on the order of its factors",
    (
        "positions/rotary_scores",
        "rotary_scores: return turned_query @ turned_key.transpose(-2, -1) / query.shape[-1] ** 0.5 -> "
        "return turned_query @ turned_key.transpose(-1, -2) / query.shape[-1] ** 0.5",
    ): "exchanging the last two axes is exchanging them in the other order",
    (
        "positions/rotary_scores",
        "rotary_scores: return turned_query @ turned_key.transpose(-2, -1) / query.shape[-1] ** 0.5 -> "
        "return turned_query @ turned_key.transpose(2, -1) / query.shape[-1] ** 0.5",
    ): "of four axes, 2 is the last but one",
    (
        "positions/rotary_scores",
        "rotary_scores: return turned_query @ turned_key.transpose(-2, -1) / query.shape[-1] ** 0.5 -> "
        "return turned_query @ turned_key.transpose(-2, -1) / key.shape[-1] ** 0.5",
    ): "queries and keys have one size",
    (
        "sliding_window/near_mask",
        "near_mask: return (behind >= 0) & (behind < window) -> return (behind >= 0) * (behind < window)",
    ): "a product of booleans is their “and”",
    (
        "sliding_window/near_mask",
        "near_mask: return (behind >= 0) & (behind < window) -> return (behind < window) & (behind >= 0)",
    ): "“and” does not depend on the order of what it joins",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: T = query.shape[2] -> T = key.shape[2]",
    ): "there are as many keys as queries",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: T = query.shape[2] -> T = value.shape[2]",
    ): "there are as many values as queries",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: column = torch.arange(2 * window) -> column = torch.arange(window * 2)",
    ): "a product does not depend on the order of its factors",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: behind = torch.arange(window, 2 * window)[:, None] - column -> behind = "
        "torch.arange(window, window * 2)[:, None] - column",
    ): "a product does not depend on the order of its factors",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: real = torch.arange(queries.shape[2])[:, None, None] * window + column >= window "
        "-> real = column + torch.arange(queries.shape[2])[:, None, None] * window >= window",
    ): "a sum does not depend on the order of its terms",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: real = torch.arange(queries.shape[2])[:, None, None] * window + column >= window "
        "-> real = window * torch.arange(queries.shape[2])[:, None, None] + column >= window",
    ): "a product does not depend on the order of its factors",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: near = (behind >= 0) & (behind < window) & real -> near = ((behind >= 0) & (behind < "
        "window)) * real",
    ): "a product of booleans is their “and”",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: near = (behind >= 0) & (behind < window) & real -> near = real & ((behind >= 0) & "
        "(behind < window))",
    ): "“and” does not depend on the order of what it joins",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: near = (behind >= 0) & (behind < window) & real -> near = (behind >= 0) * (behind < "
        "window) & real",
    ): "a product of booleans is their “and”",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: near = (behind >= 0) & (behind < window) & real -> near = (behind < window) & (behind "
        ">= 0) & real",
    ): "“and” does not depend on the order of what it joins",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: scores = queries @ keys.transpose(3, 4) / query.shape[3] ** 0.5 -> scores = queries @ "
        "keys.transpose(4, 3) / query.shape[3] ** 0.5",
    ): "exchanging axes 3 and 4 is exchanging axes 4 and 3",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: scores = queries @ keys.transpose(3, 4) / query.shape[3] ** 0.5 -> scores = queries @ "
        "keys.transpose(3, 4) / key.shape[3] ** 0.5",
    ): "queries and keys have one size",
    (
        "sliding_window/window_by_blocks",
        "window_by_blocks: weights = scores.masked_fill(~near, float('-inf')).softmax(4) -> weights = "
        "scores.masked_fill(~near, float('-1e9')).softmax(4)",
    ): "every token sees itself, beside which exp(-1e9) is exactly 0",
    (
        "sliding_window/slot_positions",
        "slot_positions: return positions.masked_fill(positions < 0, -1) -> return "
        "positions.masked_fill(positions < -1, -1)",
    ): "a position of -1 is written as -1 already",
    (
        "sparse/strided_pattern",
        "strided_pattern: return (behind >= 0) & (near | far) -> return (behind >= 0) * (near | far)",
    ): "a product of booleans is their `&`",
    (
        "sparse/strided_pattern",
        "strided_pattern: return (behind >= 0) & (near | far) -> return (near | far) & (behind >= 0)",
    ): "`&` does not depend on the order of its terms",
    (
        "sparse/strided_pattern",
        "strided_pattern: return (behind >= 0) & (near | far) -> return (behind >= 0) & near + far",
    ): "a sum of booleans is their `|`, and binds tighter than `&`",
    (
        "sparse/strided_pattern",
        "strided_pattern: return (behind >= 0) & (near | far) -> return (behind >= 0) & (far | near)",
    ): "`|` does not depend on the order of its terms",
    (
        "sparse/stride_classes",
        "stride_classes: return whole.reshape(B, H, -1, stride, D).transpose(2, 3) -> "
        "return whole.reshape(B, H, -1, stride, D).transpose(3, 2)",
    ): "exchanging axes 2 and 3 is exchanging axes 3 and 2",
    (
        "sparse/merge_parts",
        "merge_parts: largest = log_sums.amax(0).clamp(min=torch.finfo(log_sums.dtype).min) -> "
        "largest = log_sums.amax(0).clamp(min=torch.finfo(outputs.dtype).min)",
    ): "outputs and log-sums have one dtype",
    (
        "sparse/merge_parts",
        "merge_parts: return (shares[..., None] * outputs).sum(0) / total[..., None] -> "
        "return (outputs * shares[..., None]).sum(0) / total[..., None]",
    ): "a product does not depend on the order of its factors",
    (
        "sparse/global_pattern",
        "global_pattern: near = (place[:, None] - place).abs() < window -> "
        "near = (place - place[:, None]).abs() < window",
    ): "the distance has no sign",
    (
        "sparse/global_pattern",
        "global_pattern: return near | is_global[:, :, None] | is_global[:, None, :] -> "
        "return (near | is_global[:, :, None]) + is_global[:, None, :]",
    ): "a sum of booleans is their `|`",
    (
        "sparse/global_pattern",
        "global_pattern: return near | is_global[:, :, None] | is_global[:, None, :] -> "
        "return is_global[:, None, :] | (near | is_global[:, :, None])",
    ): "`|` does not depend on the order of its terms",
    (
        "sparse/global_pattern",
        "global_pattern: return near | is_global[:, :, None] | is_global[:, None, :] -> "
        "return near + is_global[:, :, None] | is_global[:, None, :]",
    ): "a sum of booleans is their `|`, and binds tighter than `|`",
    (
        "sparse/global_pattern",
        "global_pattern: return near | is_global[:, :, None] | is_global[:, None, :] -> "
        "return is_global[:, :, None] | near | is_global[:, None, :]",
    ): "`|` does not depend on the order of its terms",
    (
        "sparse/global_pattern",
        "global_pattern: return near | is_global[:, :, None] | is_global[:, None, :] -> "
        "return near | is_global[:, :, None] | is_global[:, None]",
    ): "an index leaves the axes it does not name as they are: [:, None] is [:, None, :]",
    (
        "sparse/count_hops",
        "count_hops: hops = torch.full((T, T), -1).masked_fill(reached, 0) -> "
        "hops = torch.full((T,), -1).masked_fill(reached, 0)",
    ): "one row of -1 is stretched to the shape of `reached`, (T, T)",
    (
        "sparse/count_hops",
        "count_hops: wider = reached | (mask.float() @ reached.float() > 0) -> "
        "wider = reached + (mask.float() @ reached.float() > 0)",
    ): "a sum of booleans is their `|`",
    (
        "sparse/count_hops",
        "count_hops: wider = reached | (mask.float() @ reached.float() > 0) -> "
        "wider = (mask.float() @ reached.float() > 0) | reached",
    ): "`|` does not depend on the order of its terms",
    (
        "sparse/count_hops",
        "count_hops: wider = reached | (mask.float() @ reached.float() > 0) -> "
        "wider = reached | (reached.float() @ mask.float() > 0)",
    ): "`reached` is made of powers of the mask, and those may be multiplied by it on either side",
    (
        "sparse/count_hops",
        "count_hops: hops[wider & ~reached] = layer -> hops[wider * ~reached] = layer",
    ): "a product of booleans is their `&`",
    (
        "sparse/count_hops",
        "count_hops: hops[wider & ~reached] = layer -> hops[~reached & wider] = layer",
    ): "`&` does not depend on the order of its terms",
    (
        "linear/kernel_attention",
        "kernel_attention: query, key = (F.elu(query) + 1, F.elu(key) + 1) -> "
        "query, key = (1 + F.elu(query), F.elu(key) + 1)",
    ): "a sum does not depend on the order of its terms",
    (
        "linear/kernel_attention",
        "kernel_attention: query, key = (F.elu(query) + 1, F.elu(key) + 1) -> "
        "query, key = (F.elu(query) + 1, 1 + F.elu(key))",
    ): "a sum does not depend on the order of its terms",
    (
        "linear/update_state",
        "update_state: memory = memory + key[..., None] * value[..., None, :] -> "
        "memory = key[..., None] * value[..., None, :] + memory",
    ): "a sum does not depend on the order of its terms",
    (
        "linear/update_state",
        "update_state: memory = memory + key[..., None] * value[..., None, :] -> "
        "memory = memory + value[..., None, :] * key[..., None]",
    ): "a product does not depend on the order of its factors",
    (
        "linear/update_state",
        "update_state: total = total + key -> total = key + total",
    ): "a sum does not depend on the order of its terms",
    (
        "linear/update_state",
        "update_state: read = (query[..., None, :] @ memory)[..., 0, :] -> "
        "read = (query[..., None, :] @ memory)[..., -1, :]",
    ): "there is one query, so the first row is the last",
    (
        "linear/update_state",
        "update_state: return (read / (query * total).sum(-1, keepdim=True), memory, total) -> "
        "return (read / (total * query).sum(-1, keepdim=True), memory, total)",
    ): "a product does not depend on the order of its factors",
    (
        "linear/chunk_attention",
        "chunk_attention: memory = torch.zeros_like(key.mT @ value) -> memory = torch.zeros_like(query.mT @ value)",
    ): "queries have the shape of keys, and only the shape is used",
    (
        "linear/chunk_attention",
        "chunk_attention: total = torch.zeros_like(key.sum(2)) -> total = torch.zeros_like(query.sum(2))",
    ): "queries have the shape of keys, and only the shape is used",
    (
        "linear/chunk_attention",
        "chunk_attention: outputs, memories = ([], []) -> memories, outputs = ([], [])",
    ): "both are empty lists, whichever name gets which",
    (
        "linear/chunk_attention",
        "chunk_attention: for q, k, v in zip(*(x.split(chunk, dim=2) for x in (query, key, value)), strict=True): -> "
        "for q, k, v in zip(*(x.split(chunk, dim=2) for x in (query, key, value))):",
    ): "all three are as long, so there are as many pieces of each",
    (
        "linear/chunk_attention",
        "chunk_attention: for q, k, v in zip(*(x.split(chunk, dim=2) for x in (query, key, value)), strict=True): -> "
        "for q, k, v in zip(*(x.split(chunk, dim=2) for x in (query, key, value)), strict=False):",
    ): "all three are as long, so there are as many pieces of each",
    (
        "linear/chunk_attention",
        "chunk_attention: divisor = weights.sum(-1, keepdim=True) + q @ total[..., None] -> "
        "divisor = q @ total[..., None] + weights.sum(-1, keepdim=True)",
    ): "a sum does not depend on the order of its terms",
    (
        "linear/chunk_attention",
        "chunk_attention: outputs.append((weights @ v + q @ memory) / divisor) -> "
        "outputs.append((q @ memory + weights @ v) / divisor)",
    ): "a sum does not depend on the order of its terms",
    (
        "linear/chunk_attention",
        "chunk_attention: memory, total = (memory + k.mT @ v, total + k.sum(2)) -> "
        "memory, total = (k.mT @ v + memory, total + k.sum(2))",
    ): "a sum does not depend on the order of its terms",
    (
        "linear/chunk_attention",
        "chunk_attention: memory, total = (memory + k.mT @ v, total + k.sum(2)) -> "
        "memory, total = (memory + k.mT @ v, k.sum(2) + total)",
    ): "a sum does not depend on the order of its terms",
    (
        "linear/random_features",
        "random_features: x = x / x.shape[-1] ** 0.25 -> x = x / projection.shape[-1] ** 0.25",
    ): "a direction has as many numbers as a vector",
    (
        "linear/orthogonal_rows",
        "orthogonal_rows: directions = Q * R.diagonal().sign() -> directions = Q / R.diagonal().sign()",
    ): "to divide by 1 or -1 is to multiply by it",
    (
        "linear/orthogonal_rows",
        "orthogonal_rows: directions = Q * R.diagonal().sign() -> directions = R.diagonal().sign() * Q",
    ): "a product does not depend on the order of its factors",
    (
        "linear/orthogonal_rows",
        "orthogonal_rows: return norms[:, None] * directions -> return directions * norms[:, None]",
    ): "a product does not depend on the order of its factors",
    (
        "mla/cached_numbers",
        "cached_numbers: in_a_layer = kv_lora_rank + qk_rope_head_dim -> in_a_layer = qk_rope_head_dim + kv_lora_rank",
    ): "a sum does not depend on the order of its terms",
    (
        "mla/cached_numbers",
        "cached_numbers: return (n_layers * in_a_layer, in_a_layer / (2 * v_head_dim)) -> "
        "return (in_a_layer * n_layers, in_a_layer / (2 * v_head_dim))",
    ): "a product does not depend on the order of its factors",
    (
        "mla/cached_numbers",
        "cached_numbers: return (n_layers * in_a_layer, in_a_layer / (2 * v_head_dim)) -> "
        "return (n_layers * in_a_layer, in_a_layer / (v_head_dim * 2))",
    ): "a product does not depend on the order of its factors",
    (
        "mla/absorbed_scores",
        "absorbed_scores: (T, R), S = (query_rope.shape[2:], latent.shape[1]) -> "
        "(T, R), S = (query_rope.shape[2:], key_rope.shape[1])",
    ): "there are as many rotary keys as latents",
    (
        "mla/absorbed_scores",
        "absorbed_scores: return (by_content + by_position) / (query_nope.shape[-1] + R) ** 0.5 -> "
        "return (by_position + by_content) / (query_nope.shape[-1] + R) ** 0.5",
    ): "a sum does not depend on the order of its terms",
    (
        "mla/absorbed_scores",
        "absorbed_scores: return (by_content + by_position) / (query_nope.shape[-1] + R) ** 0.5 -> "
        "return (by_content + by_position) / (R + query_nope.shape[-1]) ** 0.5",
    ): "a sum does not depend on the order of its terms",
    (
        "kv_cache/append_tokens",
        "append_tokens: end = length + key.shape[2] -> end = key.shape[2] + length",
    ): "a sum does not depend on the order of its terms",
    (
        "kv_cache/append_tokens",
        "append_tokens: end = length + key.shape[2] -> end = length + value.shape[2]",
    ): "there are as many new values as new keys",
    (
        "kv_cache/append_tokens",
        "append_tokens: room_key, room_value = (room_key.clone(), room_value.clone()) -> (deleted)",
    ): "only advice: the same is returned, but the caller's rooms are written into",
    (
        "kv_cache/append_tokens",
        "append_tokens: room_key, room_value = (room_key.clone(), room_value.clone()) -> "
        "room_key, room_value = (room_key, room_value.clone())",
    ): "only advice: the same is returned, but the caller's room of keys is written into",
    (
        "kv_cache/append_tokens",
        "append_tokens: room_key, room_value = (room_key.clone(), room_value.clone()) -> "
        "room_key, room_value = (room_key.clone(), room_value)",
    ): "only advice: the same is returned, but the caller's room of values is written into",
    (
        "kv_cache/decode_chunk",
        "decode_chunk: T, S, D = (query.shape[2], key.shape[2], query.shape[3]) -> "
        "T, S, D = (query.shape[2], value.shape[2], query.shape[3])",
    ): "there are as many values as keys",
    (
        "kv_cache/decode_chunk",
        "decode_chunk: T, S, D = (query.shape[2], key.shape[2], query.shape[3]) -> "
        "T, S, D = (query.shape[2], key.shape[2], key.shape[3])",
    ): "a query and a key have one size",
    (
        "kv_cache/decode_chunk",
        "decode_chunk: allowed = (torch.arange(S) <= positions[:, None]) & padding -> "
        "allowed = (torch.arange(S) <= positions[:, None]) * padding",
    ): "the product of two booleans is True where both are",
    (
        "kv_cache/decode_chunk",
        "decode_chunk: allowed = (torch.arange(S) <= positions[:, None]) & padding -> "
        "allowed = padding & (torch.arange(S) <= positions[:, None])",
    ): "both conditions hold, in whichever order they are asked",
    (
        "kv_cache/decode_chunk",
        "decode_chunk: scores = turned @ key.transpose(2, 3) / D ** 0.5 -> "
        "scores = turned @ key.transpose(3, 2) / D ** 0.5",
    ): "exchanging axes 2 and 3 is exchanging axes 3 and 2",
    (
        "kv_cache/decode_chunk",
        "decode_chunk: weights = scores.masked_fill(~allowed, float('-inf')).softmax(-1) -> "
        "weights = scores.masked_fill(~allowed, float('-1e9')).softmax(-1)",
    ): "the last fill makes forbidden weights, and so empty rows, exactly 0; beside scores of a few hundred "
    "exp(-1e9) takes no share",
    (
        "kv_cache/cache_bytes",
        "cache_bytes: n_keys = n_layers * n_kv_heads * n_tokens -> n_keys = n_tokens * (n_layers * n_kv_heads)",
    ): "a product does not depend on the order of its factors",
    (
        "kv_cache/cache_bytes",
        "cache_bytes: n_keys = n_layers * n_kv_heads * n_tokens -> n_keys = n_kv_heads * n_layers * n_tokens",
    ): "a product does not depend on the order of its factors",
    (
        "kv_cache/cache_bytes",
        "cache_bytes: numbers = 2 * n_keys * head_dim -> numbers = head_dim * (2 * n_keys)",
    ): "a product does not depend on the order of its factors",
    (
        "kv_cache/cache_bytes",
        "cache_bytes: numbers = 2 * n_keys * head_dim -> numbers = n_keys * 2 * head_dim",
    ): "a product does not depend on the order of its factors",
    (
        "kv_cache/cache_bytes",
        "cache_bytes: return numbers * bytes_per_number -> return bytes_per_number * numbers",
    ): "a product does not depend on the order of its factors",
    (
        "kv_cache/quantize_cache",
        "quantize_cache: return tuple(results) -> return results",
    ): "a list of tensors is taken as a tuple of them",
    (
        "gqa/repeat_kv",
        "repeat_kv: return copies.reshape(B, G * n_repeats, S, D) -> return copies.reshape(B, n_repeats * G, S, D)",
    ): "a product does not depend on the order of its factors",
    (
        "gqa/grouped_attention",
        "grouped_attention: G, S = key.shape[1:3] -> G, S = value.shape[1:3]",
    ): "there are as many values as keys, in as many heads",
    (
        "gqa/grouped_attention",
        "grouped_attention: rows = query.reshape(B, G, H // G * T, D) -> rows = query.reshape(B, G, T * (H // G), D)",
    ): "a product does not depend on the order of its factors",
    (
        "gqa/grouped_attention",
        "grouped_attention: allowed = allowed & mask -> allowed = allowed * mask",
    ): "a product of booleans is their “and”",
    (
        "gqa/grouped_attention",
        "grouped_attention: allowed = allowed & mask -> allowed = mask & allowed",
    ): "“and” does not depend on the order of what it joins",
    (
        "gqa/grouped_attention",
        "grouped_attention: weights = scores.masked_fill(~allowed, "
        "float('-inf')).softmax(-1).masked_fill(~allowed, 0.0) -> weights = scores.masked_fill(~allowed, "
        "float('-1e9')).softmax(-1).masked_fill(~allowed, 0.0)",
    ): "beside a key that is allowed exp(-1e9) is exactly 0, and the last fill makes rows without one 0",
    (
        "gqa/grouped_attention",
        "grouped_attention: output = weights.reshape(B, G, H // G * T, S) @ value -> output = "
        "weights.reshape(B, G, T * (H // G), S) @ value",
    ): "a product does not depend on the order of its factors",
    (
        "gqa/heads_in_budget",
        "heads_in_budget: choices = torch.tensor([g for g in range(1, n_heads + 1) if n_heads % g == 0]) -> "
        "choices = torch.tensor([g for g in range(1, 1 + n_heads) if n_heads % g == 0])",
    ): "a sum does not depend on the order of its terms",
    (
        "gqa/heads_in_budget",
        "heads_in_budget: choices = torch.tensor([g for g in range(1, n_heads + 1) if n_heads % g == 0]) -> "
        "choices = torch.tensor([g for g in range(1, budget + 1) if n_heads % g == 0])",
    ): "no number above H divides H, and none above the budget fits into it",
    (
        "gqa/heads_in_budget",
        "heads_in_budget: choices = torch.tensor([g for g in range(1, n_heads + 1) if n_heads % g == 0]) -> "
        "choices = torch.tensor([g for g in range(1, n_heads + 2) if n_heads % g == 0])",
    ): "H + 1 does not divide H, which is more than 1",
    (
        "gqa/heads_in_budget",
        "heads_in_budget: one_head = 2 * n_layers * head_dim * bytes_per_number * n_tokens -> one_head = "
        "n_tokens * (2 * n_layers * head_dim * bytes_per_number)",
    ): "a product does not depend on the order of its factors",
    (
        "gqa/heads_in_budget",
        "heads_in_budget: one_head = 2 * n_layers * head_dim * bytes_per_number * n_tokens -> one_head = "
        "bytes_per_number * (2 * n_layers * head_dim) * n_tokens",
    ): "a product does not depend on the order of its factors",
    (
        "gqa/heads_in_budget",
        "heads_in_budget: one_head = 2 * n_layers * head_dim * bytes_per_number * n_tokens -> one_head = "
        "head_dim * (2 * n_layers) * bytes_per_number * n_tokens",
    ): "a product does not depend on the order of its factors",
    (
        "gqa/heads_in_budget",
        "heads_in_budget: one_head = 2 * n_layers * head_dim * bytes_per_number * n_tokens -> one_head = "
        "n_layers * 2 * head_dim * bytes_per_number * n_tokens",
    ): "a product does not depend on the order of its factors",
    (
        "gqa/heads_in_budget",
        "heads_in_budget: fits = one_head[:, None] * choices <= budget -> fits = choices * one_head[:, None] <= budget",
    ): "a product does not depend on the order of its factors",
    (
        "mqa/split_one_key",
        "split_one_key: heads = fused.unflatten(2, (n_heads + 2, -1)).transpose(1, 2) -> heads = "
        "fused.unflatten(2, (n_heads + 2, -1)).transpose(2, 1)",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "mqa/split_one_key",
        "split_one_key: heads = fused.unflatten(2, (n_heads + 2, -1)).transpose(1, 2) -> heads = "
        "fused.unflatten(2, (2 + n_heads, -1)).transpose(1, 2)",
    ): "a sum does not depend on the order of its terms",
    (
        "mqa/split_one_key",
        "split_one_key: return (heads[:, :n_heads], heads[:, n_heads:n_heads + 1], heads[:, n_heads + 1:]) ->"
        " return (heads[:, :n_heads], heads[:, n_heads:1 + n_heads], heads[:, n_heads + 1:])",
    ): "a sum does not depend on the order of its terms",
    (
        "mqa/split_one_key",
        "split_one_key: return (heads[:, :n_heads], heads[:, n_heads:n_heads + 1], heads[:, n_heads + 1:]) ->"
        " return (heads[:, :n_heads], heads[:, n_heads:n_heads + 1], heads[:, 1 + n_heads:])",
    ): "a sum does not depend on the order of its terms",
    (
        "mqa/multi_query",
        "multi_query: S = key.shape[2] -> S = value.shape[2]",
    ): "there are as many values as keys",
    (
        "mqa/multi_query",
        "multi_query: scores = query.flatten(1, 2) @ key[:, 0].mT / D ** 0.5 -> scores = query.flatten(1, 2) "
        "@ key[:, -1].mT / D ** 0.5",
    ): "there is one key head, so the first is the last",
    (
        "mqa/multi_query",
        "multi_query: scores = scores.unflatten(1, (H, T)).masked_fill(later, float('-inf')) -> scores = "
        "scores.unflatten(1, (H, T)).masked_fill(later, float('-1e9'))",
    ): "every query sees itself, and beside its score exp(-1e9) is exactly 0",
    (
        "mqa/multi_query",
        "multi_query: output = scores.softmax(3).flatten(1, 2) @ value[:, 0] -> output = "
        "scores.softmax(3).flatten(1, 2) @ value[:, -1]",
    ): "there is one value head, so the first is the last",
    (
        "mqa/step_intensity",
        "step_intensity: flop = 4 * n_heads * lengths * head_dim -> flop = head_dim * (4 * n_heads * lengths)",
    ): "a product does not depend on the order of its factors",
    (
        "mqa/step_intensity",
        "step_intensity: flop = 4 * n_heads * lengths * head_dim -> flop = lengths * (4 * n_heads) * head_dim",
    ): "a product does not depend on the order of its factors",
    (
        "mqa/step_intensity",
        "step_intensity: flop = 4 * n_heads * lengths * head_dim -> flop = n_heads * 4 * lengths * head_dim",
    ): "a product does not depend on the order of its factors",
    (
        "mqa/step_intensity",
        "step_intensity: cache = 2 * n_kv_heads * lengths * head_dim -> cache = head_dim * (2 * n_kv_heads * lengths)",
    ): "a product does not depend on the order of its factors",
    (
        "mqa/step_intensity",
        "step_intensity: cache = 2 * n_kv_heads * lengths * head_dim -> cache = lengths * (2 * n_kv_heads) * head_dim",
    ): "a product does not depend on the order of its factors",
    (
        "mqa/step_intensity",
        "step_intensity: cache = 2 * n_kv_heads * lengths * head_dim -> cache = n_kv_heads * 2 * lengths * head_dim",
    ): "a product does not depend on the order of its factors",
    (
        "mqa/step_intensity",
        "step_intensity: ends = 2 * n_heads * head_dim -> ends = head_dim * (2 * n_heads)",
    ): "a product does not depend on the order of its factors",
    (
        "mqa/step_intensity",
        "step_intensity: ends = 2 * n_heads * head_dim -> ends = n_heads * 2 * head_dim",
    ): "a product does not depend on the order of its factors",
    (
        "mqa/step_intensity",
        "step_intensity: return flop / (bytes_per_number * (cache + ends)) -> return flop / ((cache + ends) *"
        " bytes_per_number)",
    ): "a product does not depend on the order of its factors",
    (
        "mqa/step_intensity",
        "step_intensity: return flop / (bytes_per_number * (cache + ends)) -> return flop / (bytes_per_number"
        " * (ends + cache))",
    ): "a sum does not depend on the order of its terms",
    (
        "execution/merge_softmaxes",
        "merge_softmaxes: maximum = torch.maximum(maximum_a, maximum_b) -> maximum = torch.maximum(maximum_b, "
        "maximum_a)",
    ): "the larger of two does not depend on their order",
    (
        "execution/merge_softmaxes",
        "merge_softmaxes: finite = maximum.masked_fill(maximum == float('-inf'), 0.0) -> finite = "
        "maximum.masked_fill(maximum == float('-inf'), 1.0)",
    ): "whatever finite number is subtracted from -inf, its exponential is 0",
    (
        "execution/merge_softmaxes",
        "merge_softmaxes: total = factor_a * total_a + factor_b * total_b -> total = factor_b * total_b + "
        "factor_a * total_a",
    ): "a sum does not depend on the order of its terms",
    (
        "execution/merge_softmaxes",
        "merge_softmaxes: total = factor_a * total_a + factor_b * total_b -> total = total_a * factor_a + "
        "factor_b * total_b",
    ): "a product does not depend on the order of its factors",
    (
        "execution/merge_softmaxes",
        "merge_softmaxes: total = factor_a * total_a + factor_b * total_b -> total = factor_a * total_a + total_b"
        " * factor_b",
    ): "a product does not depend on the order of its factors",
    (
        "execution/merge_softmaxes",
        "merge_softmaxes: weighted = factor_a * weighted_a + factor_b * weighted_b -> weighted = factor_b * "
        "weighted_b + factor_a * weighted_a",
    ): "a sum does not depend on the order of its terms",
    (
        "execution/merge_softmaxes",
        "merge_softmaxes: weighted = factor_a * weighted_a + factor_b * weighted_b -> weighted = weighted_a * "
        "factor_a + factor_b * weighted_b",
    ): "a product does not depend on the order of its factors",
    (
        "execution/merge_softmaxes",
        "merge_softmaxes: weighted = factor_a * weighted_a + factor_b * weighted_b -> weighted = factor_a * "
        "weighted_a + weighted_b * factor_b",
    ): "a product does not depend on the order of its factors",
    (
        "execution/online_attention",
        "online_attention: maximum, total, weighted = (query.new_tensor(float('-inf')), 0.0, 0.0) -> maximum, "
        "weighted, total = (query.new_tensor(float('-inf')), 0.0, 0.0)",
    ): "both begin with the same number",
    (
        "execution/online_attention",
        "online_attention: maximum, total, weighted = (query.new_tensor(float('-inf')), 0.0, 0.0) -> maximum, "
        "total, weighted = (query.new_tensor(float('-inf')), 1.0, 0.0)",
    ): "before the first tile the factor is 0, whatever it multiplies",
    (
        "execution/online_attention",
        "online_attention: maximum, total, weighted = (query.new_tensor(float('-inf')), 0.0, 0.0) -> maximum, "
        "total, weighted = (query.new_tensor(float('-inf')), 0.0, 1.0)",
    ): "before the first tile the factor is 0, whatever it multiplies",
    (
        "execution/online_attention",
        "online_attention: maximum, total, weighted = (query.new_tensor(float('-inf')), 0.0, 0.0) -> maximum, "
        "total, weighted = (key.new_tensor(float('-inf')), 0.0, 0.0)",
    ): "query, key and value have one dtype",
    (
        "execution/online_attention",
        "online_attention: maximum, total, weighted = (query.new_tensor(float('-inf')), 0.0, 0.0) -> maximum, "
        "total, weighted = (value.new_tensor(float('-inf')), 0.0, 0.0)",
    ): "query, key and value have one dtype",
    (
        "execution/online_attention",
        "online_attention: maximum, total, weighted = (query.new_tensor(float('-inf')), 0.0, 0.0) -> maximum, "
        "total, weighted = (query.new_tensor(float('-1e9')), 0.0, 0.0)",
    ): "no score is as low, so the first tile's maximum takes its place all the same",
    (
        "execution/online_attention",
        "online_attention: k, v = (key[:, :, start:start + tile], value[:, :, start:start + tile]) -> k, v = "
        "(key[:, :, start:tile + start], value[:, :, start:start + tile])",
    ): "a sum does not depend on the order of its terms",
    (
        "execution/online_attention",
        "online_attention: k, v = (key[:, :, start:start + tile], value[:, :, start:start + tile]) -> k, v = "
        "(key[:, :, start:start + tile], value[:, :, start:tile + start])",
    ): "a sum does not depend on the order of its terms",
    (
        "execution/online_attention",
        "online_attention: larger = torch.maximum(maximum, scores.amax(-1, keepdim=True)) -> larger = "
        "torch.maximum(scores.amax(-1, keepdim=True), maximum)",
    ): "the larger of two does not depend on their order",
    (
        "execution/online_attention",
        "online_attention: total = factor * total + exponentials.sum(-1, keepdim=True) -> total = "
        "exponentials.sum(-1, keepdim=True) + factor * total",
    ): "a sum does not depend on the order of its terms",
    (
        "execution/online_attention",
        "online_attention: total = factor * total + exponentials.sum(-1, keepdim=True) -> total = total * factor "
        "+ exponentials.sum(-1, keepdim=True)",
    ): "a product does not depend on the order of its factors",
    (
        "execution/online_attention",
        "online_attention: weighted = factor * weighted + exponentials @ v -> weighted = exponentials @ v + "
        "factor * weighted",
    ): "a sum does not depend on the order of its terms",
    (
        "execution/online_attention",
        "online_attention: weighted = factor * weighted + exponentials @ v -> weighted = weighted * factor + "
        "exponentials @ v",
    ): "a product does not depend on the order of its factors",
    (
        "execution/score_gradients",
        "score_gradients: scale = query.shape[3] ** (-0.5) -> scale = key.shape[3] ** (-0.5)",
    ): "queries and keys have the same size",
    (
        "execution/score_gradients",
        "score_gradients: weights = torch.exp(scale * query @ key.mT - log_sum[..., None]) -> weights = "
        "torch.exp(query * scale @ key.mT - log_sum[..., None])",
    ): "a product does not depend on the order of its factors",
    (
        "execution/score_gradients",
        "score_gradients: row = (grad_output * output).sum(-1, keepdim=True) -> row = (output * "
        "grad_output).sum(-1, keepdim=True)",
    ): "a product does not depend on the order of its factors",
    (
        "execution/score_gradients",
        "score_gradients: grad_scores = weights * (grad_weights - row) -> grad_scores = (grad_weights - row) * weights",
    ): "a product does not depend on the order of its factors",
    (
        "execution/score_gradients",
        "score_gradients: grad_query, grad_key = (scale * grad_scores @ key, scale * grad_scores.mT @ query) -> "
        "grad_query, grad_key = (grad_scores * scale @ key, scale * grad_scores.mT @ query)",
    ): "a product does not depend on the order of its factors",
    (
        "execution/score_gradients",
        "score_gradients: grad_query, grad_key = (scale * grad_scores @ key, scale * grad_scores.mT @ query) -> "
        "grad_query, grad_key = (scale * grad_scores @ key, grad_scores.mT * scale @ query)",
    ): "a product does not depend on the order of its factors",
    (
        "execution/read_blocks",
        "read_blocks: S = int(lengths.max()) -> S = lengths.max()",
    ): "a tensor of one whole number serves as an index",
    (
        "execution/read_blocks",
        "read_blocks: keys = blocks.transpose(1, 2).flatten(2, 3)[:, :, :S] -> keys = blocks.transpose(2, "
        "1).flatten(2, 3)[:, :, :S]",
    ): "exchanging axes 1 and 2 is exchanging axes 2 and 1",
    (
        "execution/blocks_needed",
        "blocks_needed: in_all = (lengths + block_size - 1) // block_size -> in_all = (block_size + lengths - 1) "
        "// block_size",
    ): "a sum does not depend on the order of its terms",
    (
        "execution/blocks_needed",
        "blocks_needed: return shared + own.sum(1) -> return own.sum(1) + shared",
    ): "a sum does not depend on the order of its terms",
    (
        "choosing/roofline_ms",
        "roofline_ms: slower = torch.maximum(compute, transfer) -> slower = torch.maximum(transfer, compute)",
    ): "the larger of two does not depend on their order",
    (
        "choosing/roofline_ms",
        "roofline_ms: return (1000 * slower, transfer > compute) -> return (slower * 1000, transfer > compute)",
    ): "a product does not depend on the order of its factors",
    (
        "choosing/largest_batch",
        "largest_batch: kept = n_full * n_tokens + n_window * in_window -> kept = n_window * in_window + n_full * "
        "n_tokens",
    ): "a sum does not depend on the order of its terms",
    (
        "choosing/largest_batch",
        "largest_batch: kept = n_full * n_tokens + n_window * in_window -> kept = n_tokens * n_full + n_window * "
        "in_window",
    ): "a product does not depend on the order of its factors",
    (
        "choosing/largest_batch",
        "largest_batch: kept = n_full * n_tokens + n_window * in_window -> kept = n_full * n_tokens + in_window * "
        "n_window",
    ): "a product does not depend on the order of its factors",
    (
        "choosing/largest_batch",
        "largest_batch: fitting = left // (token_bytes * kept) -> fitting = left // (kept * token_bytes)",
    ): "a product does not depend on the order of its factors",
    (
        "choosing/matched_width",
        "matched_width: spared = n_layers * reference - attention.sum(1) -> spared = reference * n_layers - "
        "attention.sum(1)",
    ): "a product does not depend on the order of its factors",
    (
        "choosing/matched_width",
        "matched_width: one_wider = n_layers * 2 * d_model -> one_wider = d_model * (n_layers * 2)",
    ): "a product does not depend on the order of its factors",
    (
        "choosing/matched_width",
        "matched_width: one_wider = n_layers * 2 * d_model -> one_wider = 2 * n_layers * d_model",
    ): "a product does not depend on the order of its factors",
    (
        "choosing/matched_width",
        "matched_width: return width + spared // one_wider -> return spared // one_wider + width",
    ): "a sum does not depend on the order of its terms",
    (
        "choosing/pareto_front",
        "pareto_front: ahead = (cost < cost[:, None]) | (loss < loss[:, None]) -> ahead = (cost < cost[:, None]) + "
        "(loss < loss[:, None])",
    ): "the sum of two booleans is True where either is: torch adds them as `|`",
    (
        "choosing/pareto_front",
        "pareto_front: ahead = (cost < cost[:, None]) | (loss < loss[:, None]) -> ahead = (loss < loss[:, None]) | "
        "(cost < cost[:, None])",
    ): "`|` does not depend on the order of its sides",
    (
        "choosing/pareto_front",
        "pareto_front: beaten = (no_dearer & no_worse & ahead).any(1) -> beaten = ((no_dearer & no_worse) * "
        "ahead).any(1)",
    ): "the product of two booleans is True where both are",
    (
        "choosing/pareto_front",
        "pareto_front: beaten = (no_dearer & no_worse & ahead).any(1) -> beaten = (no_dearer * no_worse & "
        "ahead).any(1)",
    ): "the product of two booleans is True where both are",
    (
        "choosing/pareto_front",
        "pareto_front: beaten = (no_dearer & no_worse & ahead).any(1) -> beaten = (ahead & (no_dearer & "
        "no_worse)).any(1)",
    ): "`&` does not depend on the order of its sides",
    (
        "choosing/pareto_front",
        "pareto_front: beaten = (no_dearer & no_worse & ahead).any(1) -> beaten = (no_worse & no_dearer & "
        "ahead).any(1)",
    ): "`&` does not depend on the order of its sides",
}


@dataclass(frozen=True)
class Mutant:
    """One edit: `id` is "function: line before -> line after"; `make()` gives the function or class."""

    exercise: str
    id: str
    make: Callable[[], Callable]


def mutants(exercise: str) -> list[Mutant]:
    """All mechanical mutants of one exercise, in the order of the source, without duplicates."""
    found: dict[str, Mutant] = {}
    parts = [(part, ast.parse(textwrap.dedent(inspect.getsource(part))), methods) for part, methods in PARTS[exercise]]
    for part, tree, methods in parts:
        for id, code in edits(part.__name__, tree, methods):
            make = _maker(exercise, [(p, code if p is part else t) for p, t, _ in parts])
            found.setdefault(id, Mutant(exercise, id, make))
    return list(found.values())


def _maker(exercise: str, trees: list[tuple[Any, ast.Module]]) -> Callable[[], Callable]:
    """Run all parts, one of them edited, in one namespace, so that each sees the edited one."""

    def make() -> Callable:
        namespace: dict[str, Any] = {}
        for part, _ in reversed(trees):
            namespace.update(vars(sys.modules[part.__module__]))
        for part, tree in reversed(trees):
            exec(compile(tree, f"<mutant of {part.__name__}>", "exec"), namespace)
        return namespace[trees[0][0].__name__]

    return make
