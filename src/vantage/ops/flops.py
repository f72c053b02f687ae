"""Formulas that `torch.utils.flop_counter` lacks in torch 2.10 and has in 2.15: fused attention on the CPU.

Imported by vantage.ops, so that every count made with FlopCounterMode in this project includes them.
"""

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten

if aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry:

    @register_flop_formula(aten._scaled_dot_product_flash_attention_for_cpu)
    def forward_flops(query_shape, key_shape, value_shape, *_, **__) -> int:
        return sdpa_flop_count(query_shape, key_shape, value_shape)

    @register_flop_formula(aten._scaled_dot_product_flash_attention_for_cpu_backward)
    def backward_flops(grad_out_shape, query_shape, key_shape, value_shape, *_, **__) -> int:
        return sdpa_backward_flop_count(grad_out_shape, query_shape, key_shape, value_shape)
