"""What kernels are called -> the kind of work that their time counts for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "gpu"))

import spent


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "matrix products"),
        (
            "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<...>>",
            "matrix products",
        ),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64, cutlass::bfloat16_t>>", "attention"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", "copies and conversions"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel>", "element by element"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float>>", "optimiser and clipping"),
        ("void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>", "4 bits"),
        ("triton_red_fused_mean_pow_0", "norms and reductions"),
    ],
)
def test_kinds_of_kernels(kernel: str, kind: str) -> None:
    assert spent.kind_of(kernel) == kind


def test_the_span_of_a_step_is_no_kernel() -> None:
    """torch marks the optimiser's step on the card, too: its kernels would count twice."""

    def event(key: str, seconds: float, device: DeviceType, *, marks: bool = False) -> Any:
        times = {"self_device_time_total": seconds * 1e6, "self_cpu_time_total": 5e6}
        return SimpleNamespace(key=key, device_type=device, is_user_annotation=marks, **times)

    events = [
        event("nvjet_tst_gemm", 2, DeviceType.CUDA),
        event("FusedAdamMathFunctor", 1, DeviceType.CUDA),
        event("Optimizer.step#AdamW.step", 1.5, DeviceType.CUDA, marks=True),
        event("aten::mm", 0, DeviceType.CPU),
    ]
    assert spent.seconds_of(events, on_card=True) == {"matrix products": 2, "optimiser and clipping": 1}
