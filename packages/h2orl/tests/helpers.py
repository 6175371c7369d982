import torch

from h2orl import DynamicsGap, Transitions


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


def rows(size=12, states=3, actions=2, seed=0, dtype=torch.float32):
    """Transitions in which no column is constant."""
    parts = normal(size, 2 * states + actions + 1, seed=seed, dtype=dtype).split(
        [states, actions, states, 1], 1
    )
    ends = (torch.arange(size) % 3 == 0).to(dtype)
    return Transitions(parts[0], parts[1], parts[2], parts[3][:, 0], ends)


def make_gap(states=3, actions=2, hidden=(16, 16), seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DynamicsGap(states, actions, hidden, **options)


def logits(classifier, *parts):
    """A classifier the way the paper's appendix writes it: one concatenation, relu, bounded by 2 tanh."""
    values = torch.cat(parts, -1)
    for index, layer in enumerate(classifier.layers):
        values = layer(values if index == 0 else torch.relu(values))
    return 2 * torch.tanh(values)


def probabilities(gap, state, action, following):
    """(p_sa, p_sas) by softmax, the second with the residual logits."""
    first = logits(gap.d_sa, state, action)
    return first.softmax(-1), (logits(gap.d_sas, state, action, following) + first).softmax(-1)


def gaussian_sides(size, shift, seed, visits=0.7):
    """s' = 0.5 s + 0.3 a + N(0, 1) in reality, plus `shift` in the simulator, which also visits other states."""
    sides = []
    for index, (moved, start) in enumerate(((0.0, 0.0), (shift, visits))):
        state = normal(size, 1, seed=seed + index) + start
        action = normal(size, 1, seed=seed + index + 100)
        noise = normal(size, 1, seed=seed + index + 200)
        sides.append(Transitions(state, action, 0.5 * state + 0.3 * action + moved + noise))
    return sides
