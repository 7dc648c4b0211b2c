"""What tl.dot may do to float32 operands ("ieee", "tf32" or "tf32x3"). Sums are always float32."""

import torch


def of_passes(dtype: torch.dtype) -> str:
    """Of products with an input of type `dtype`: half types carry no more than TF32 does."""
    return "tf32" if dtype != torch.float32 or _tf32_is_allowed() else "ieee"


def of_matrices() -> str:
    """Of products of g x g matrices: three of TF32's are as good as one of float32's."""
    return "tf32x3" if _tf32_is_allowed() else "ieee"


def _tf32_is_allowed() -> bool:
    """What PyTorch was told, in the words that it has had since 2.9 or in those before."""
    matmul = torch.backends.cuda.matmul
    try:
        precision = matmul.fp32_precision
    except AttributeError:
        return matmul.allow_tf32
    return precision == "tf32"
