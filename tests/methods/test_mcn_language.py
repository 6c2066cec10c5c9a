"""MCN's sentence vectors: the order of words, padding, dropout."""

import pytest
import torch
from torch.testing import assert_close

from lit_methods.mcn.model import AttentiveGRUEncoder


def encoder(**options):
    return AttentiveGRUEncoder(word_dim=6, hidden=8, **options)


def test_directions_are_added_and_pooled_with_a_weight_for_each_channel():
    net, words = encoder().eval(), torch.randn(3, 5, 6)
    both, _ = net.gru(words)
    h = both[..., :8] + both[..., 8:]
    weights = torch.tanh(h @ net.attention.weight.T + net.attention.bias).exp()
    assert_close(net(words), (weights * h).sum(1) / weights.sum(1))


def test_the_order_of_words_matters():
    net, words = encoder().eval(), torch.randn(1, 5, 6)
    assert (net(words) - net(words.flip(1))).abs().max() > 1e-3


def test_attention_leaves_padding_out_where_it_is_asked_to():
    net, words = encoder(mask_padding=True).eval(), torch.randn(2, 5, 6)
    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    both, _ = net.gru(words)
    h = (both[..., :8] + both[..., 8:])[0, :2]
    weights = torch.tanh(net.attention(h)).softmax(0)
    masked = net(words, mask)
    assert_close(masked[0], (weights * h).sum(0))
    net.mask_padding = False
    whole = net(words, mask)  # as the official code: the mask is not used
    assert_close(masked[1], whole[1])  # a sentence of no words is pooled over its padding
    assert (masked[0] - whole[0]).abs().max() > 1e-4


def test_dropout_is_for_training_alone():
    net, words = encoder(dropout=0.5), torch.randn(2, 5, 6)
    assert not torch.equal(net(words), net(words))
    assert torch.equal(net.eval()(words), net(words))
    still = encoder(dropout=0.0)
    assert torch.equal(still(words), still.eval()(words))


def test_both_dropouts_are_there():
    net = encoder(dropout=0.5)
    assert not torch.equal(net(torch.zeros(1, 5, 6)), net.eval()(torch.zeros(1, 5, 6)))  # that of the attention
    net.train()
    with torch.no_grad():
        net.attention.weight.zero_()
        net.attention.bias.zero_()  # a uniform mean, whatever is dropped
    words = torch.randn(1, 5, 6)
    assert not torch.equal(net(words), net(words))  # that of the words


def test_no_sentences_give_no_vectors():
    assert encoder().eval()(torch.zeros(0, 5, 6)).shape == (0, 8)


@pytest.mark.parametrize("words", [torch.zeros(2, 5, 7), torch.zeros(5, 6)])
def test_words_of_another_size_are_refused(words):
    with pytest.raises(ValueError, match=r"words must be \(N, T, 6\)"):
        encoder()(words)


def test_a_missing_mask_is_refused():
    with pytest.raises(ValueError, match="give a mask"):
        encoder(mask_padding=True)(torch.zeros(2, 5, 6))
