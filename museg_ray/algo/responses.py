"""Sums and means over the tokens of each response, given back to each of its tokens.

Shapes: K tokens, of any responses. `responses` [K] int64 says which one a token is of, by any number from 0 to K - 1:
so a vector of K has room for all of them, and a GPU need not be asked how many there are.
"""

import torch
from torch import Tensor


def response_sums(values: Tensor, responses: Tensor) -> Tensor:
    """[K] at each token the sum of `values` [K] over its response's tokens."""
    return torch.zeros_like(values).index_add(0, responses, values)[responses]


def response_means(values: Tensor, responses: Tensor) -> Tensor:
    """[K] at each token the mean of `values` [K] over its response's tokens."""
    return response_sums(values, responses) / response_sums(torch.ones_like(values), responses)
