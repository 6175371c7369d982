import math

import numpy as np
import pytest
import torch
from helpers import official_protocol
from hypothesis import given
from hypothesis import strategies as st

from rlif import (
    ActionDistanceSupervisor,
    CallableSupervisor,
    InterventionController,
    RandomSupervisor,
    ScheduleSupervisor,
    Supervisor,
    ValueSupervisor,
    annealed_beta,
)


class Scripted(Supervisor):
    """Fires as told, one list of booleans for each environment."""

    def __init__(self, fires, n_steps):
        self.fires, self.n_steps, self.moment = fires, n_steps, 0

    def __call__(self, observation, action, active, generator=None):
        take = torch.tensor([row[self.moment] for row in self.fires])
        self.moment += 1
        return take, torch.full_like(action, 9.0)


def quiet(count):
    return torch.zeros(count, dtype=torch.bool)


@given(
    fires=st.lists(st.lists(st.booleans(), min_size=15, max_size=15), min_size=1, max_size=3),
    n=st.integers(1, 5),
)
def test_control_follows_the_official_bookkeeping(fires, n):
    controller = InterventionController(Scripted(fires, n), len(fires))
    steps = [controller.decide(None, torch.zeros(len(fires), 2)) for _ in range(15)]
    for env, row in enumerate(fires):
        wanted = official_protocol(row, n)
        assert [bool(step.intervened[env]) for step in steps] == wanted
        begins = [flag and not (t and wanted[t - 1]) for t, flag in enumerate(wanted)]
        assert [bool(step.takeover[env]) for step in steps] == begins
        assert [bool(step.caused[env]) for step in steps] == [
            begin and t > 0 for t, begin in enumerate(begins)
        ]
        assert [float(step.action[env, 1]) for step in steps] == [9.0 * flag for flag in wanted]


def test_a_takeover_ends_with_its_episode():
    controller = InterventionController(Scripted([[True] * 6] * 2, 4), 2)
    first = [controller.decide(None, torch.zeros(2, 1)) for _ in range(2)]
    controller.reset(torch.tensor([True, False]))
    again = [controller.decide(None, torch.zeros(2, 1)) for _ in range(3)]
    assert [step.intervened.tolist() for step in first] == [[True, True]] * 2
    assert [step.takeover.tolist() for step in again] == [[True, False], [False, False], [False, False]]
    assert [step.intervened.tolist() for step in again] == [[True, True], [True, True], [True, False]]
    assert not again[0].caused.any()  # an episode's first step has nothing before it


def test_label_only_raises_flags_and_leaves_control():
    controller = InterventionController(Scripted([[True] * 3], 2), 1, label_only=True)
    step = controller.decide(None, torch.ones(1, 1))
    assert step.intervened.item()
    assert step.action.item() == 1.0


def value(rule="gap", **options):
    return ValueSupervisor(
        lambda s: torch.zeros(len(s), 1),
        lambda s, a: s[:, 0] - a[:, 0].abs(),
        rule=rule,
        **{"delta": 0.5} | options,
    )


STATES = torch.full((4, 1), 10.0)
ACTIONS = torch.tensor([[0.1], [0.4], [-0.6], [2.0]])


def test_both_rules_by_hand():
    assert value().bad(STATES, ACTIONS).tolist() == [False, False, True, True]
    # Q of the actions: 9.9, 9.6, 9.4, 8; of the reference 10.
    assert value("ratio", alpha=0.97).bad(STATES, ACTIONS).tolist() == [False, True, True, True]
    assert value("ratio", alpha=0.9).bad(STATES, ACTIONS).tolist() == [False, False, False, True]
    assert not value("ratio", alpha=-1e9, beta=1.0)(STATES, ACTIONS, quiet(4))[0].any()
    other = value(reference=lambda s: torch.full((len(s), 1), 0.3))  # Q of the reference is 9.7 now
    assert other.bad(STATES, ACTIONS).tolist() == [False, False, False, True]


@given(scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_the_ratio_knows_no_scale_and_the_gap_no_shift(scale, shift):
    states, actions = torch.full((50, 1), 10.0), torch.linspace(-2.03, 2, 50)[:, None]

    def ask(rule, q):
        supervisor = ValueSupervisor(lambda s: torch.zeros(len(s), 1), q, rule=rule, delta=0.5, alpha=0.95)
        return supervisor.bad(states, actions).tolist()

    def q(s, a):
        return (s[:, 0] - a[:, 0].abs()).double()

    assert ask("ratio", q) == ask("ratio", lambda s, a: scale * q(s, a))
    assert ask("gap", q) == ask("gap", lambda s, a: shift + q(s, a))


def test_beta_is_how_often_the_rule_is_followed():
    generator = torch.Generator().manual_seed(0)
    states, actions = STATES[:1].expand(20_000, 1), torch.tensor([[0.1], [2.0]]).repeat(10_000, 1)
    take, _ = value(beta=0.9)(states, actions, quiet(20_000), generator)
    rates = take.view(-1, 2).float().mean(0)
    torch.testing.assert_close(rates, torch.tensor([0.1, 0.9]), atol=0.012, rtol=0)
    assert value(beta=1.0)(states, actions, quiet(20_000))[0].view(-1, 2).all(0).tolist() == [False, True]
    half, _ = value(beta=0.5)(states, actions, quiet(20_000), generator)
    torch.testing.assert_close(half.view(-1, 2).float().mean(0), torch.full((2,), 0.5), atol=0.02, rtol=0)


@pytest.mark.parametrize("ensemble", ["min", "mean"])
@pytest.mark.parametrize("form", ["members", "columns", "tuple", "column"])
def test_critics_of_every_form(form, ensemble):
    def q(s, a):
        values = torch.stack([-a[:, 0].abs(), -2 * a[:, 0].abs() + 0.4])
        return {
            "members": values,
            "columns": values[..., None],
            "tuple": tuple(values[..., None]),
            "column": values[0][:, None],
        }[form]

    supervisor = ValueSupervisor(lambda s: 0 * s, q, rule="gap", delta=0.45, ensemble=ensemble)
    merged = {"min": lambda v: v.amin(0), "mean": lambda v: v.mean(0)}[ensemble]
    if form == "column":
        merged = lambda v: v[0]  # noqa: E731
    values = merged(torch.stack([-ACTIONS[:, 0].abs(), -2 * ACTIONS[:, 0].abs() + 0.4]))
    at_zero = merged(torch.tensor([[0.0], [0.4]]))
    assert supervisor.bad(STATES, ACTIONS).tolist() == (values < at_zero - 0.45).tolist()
    alone = [supervisor.bad(STATES[:1], action[None]).item() for action in ACTIONS]
    assert alone == (values < at_zero - 0.45).tolist()


def test_a_ratio_of_negative_values_is_warned_of_once():
    supervisor = ValueSupervisor(lambda s: 0 * s, lambda s, a: -1 - a[:, 0].abs())
    with pytest.warns(UserWarning, match="use rule='gap'"):
        bad = supervisor.bad(STATES, torch.zeros(4, 1))
    assert bad.all()  # the reference action itself
    supervisor.bad(STATES, ACTIONS)


def test_chance_and_distance():
    generator = torch.Generator().manual_seed(1)
    take, own = RandomSupervisor(lambda s: s + 1, 0.3)(
        STATES[:1].expand(20_000, 1), torch.zeros(20_000, 1), quiet(20_000), generator
    )
    assert float(take.float().mean()) == pytest.approx(0.3, abs=0.01)
    assert own.eq(11).all()
    actions = torch.tensor([[0.3, -0.3], [0.3, 0.3], [0.1, 0.2]])
    far = ActionDistanceSupervisor(lambda s: torch.zeros(3, 2), 0.5, beta=1.0)(
        torch.zeros(3, 2), actions, quiet(3)
    )[0]
    assert far.tolist() == [True, True, False]  # sums of absolute differences, not their largest


@given(seed=st.integers(0, 1000))
def test_a_schedule_waits_and_lasts_within_its_bounds(seed):
    generator = torch.Generator().manual_seed(seed)
    supervisor = ScheduleSupervisor(lambda s: s, wait=5, length=(3, 7))
    controller = InterventionController(supervisor, 2)
    rows = torch.zeros(2, 1)
    flags = torch.stack([controller.decide(rows, rows, generator=generator).intervened for _ in range(80)])
    for column in flags.T.tolist():
        runs, last = [], None
        for flag in column:
            if flag != last:
                runs.append([flag, 0])
                last = flag
            runs[-1][1] += 1
        assert runs[0][0] is False
        assert all(1 <= count <= 5 if not flag else 3 <= count <= 7 for flag, count in runs[:-1])
    assert {count for flag, count in runs[:-1]} > {1} or len(runs) > 3


def test_a_schedule_covers_both_bounds():
    generator = torch.Generator().manual_seed(0)
    supervisor = ScheduleSupervisor(lambda s: s, wait=2, length=(4, 5))
    controller = InterventionController(supervisor, 300)
    rows = torch.zeros(300, 1)
    flags = torch.stack(
        [controller.decide(rows, rows, generator=generator).intervened for _ in range(8)]
    ).int()
    waits = flags.argmax(0)
    assert set(waits.tolist()) == {1, 2}
    ends = [(flags[wait:, env] == 0).int().argmax().item() for env, wait in enumerate(waits.tolist())]
    assert set(ends) == {4, 5}
    controller.reset()
    assert not controller.decide(rows, rows, generator=generator).intervened.any()


def test_a_device_holds_control_as_long_as_it_acts():
    pressed = iter([None, [1.0], [2.0], None, [3.0]])
    controller = InterventionController(CallableSupervisor(lambda seen: next(pressed)), 1)
    steps = [controller.decide(torch.zeros(1, 3), torch.zeros(1, 1)) for _ in range(5)]
    assert [step.action.item() for step in steps] == [0, 1, 2, 0, 3]
    assert [step.takeover.item() for step in steps] == [False, True, False, False, True]


def test_the_official_temperature():
    assert annealed_beta(0) == pytest.approx(0.95)
    assert annealed_beta(7, epsilon=0.2, rate=0.3) == pytest.approx(1 - 0.2 * math.exp(-2.1))


def same(s):
    return s


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: ValueSupervisor(same, same, rule="gap"), "delta must be given"),
        (lambda: ValueSupervisor(same, same, beta=1.2), "beta must be"),
        (lambda: ValueSupervisor(same, same, rule="other"), "rule must be one of"),
        (lambda: ValueSupervisor(same, same, n_steps=0), "n_steps must be"),
        (lambda: ValueSupervisor(same, same, ensemble="max"), "ensemble must be one of"),
        (lambda: RandomSupervisor(same, -0.1), "p must be"),
        (lambda: ScheduleSupervisor(same, wait=0), "wait must be"),
        (lambda: ScheduleSupervisor(same, length=(3, 2)), r"length\[1\] must be"),
        (lambda: ScheduleSupervisor(same, length=5), "length must be two integers"),
        (
            lambda: ActionDistanceSupervisor(same, 0.5)(
                torch.ones(1, 1), torch.full((1, 1), math.nan), quiet(1)
            ),
            "action and policy must be finite",
        ),
        (
            lambda: RandomSupervisor(lambda s: s[:, 0] + 0.9, 1.0)(
                torch.ones(2, 1), torch.ones(2, dtype=torch.long), quiet(2)
            ),
            r"policy must return actions of torch.int64",
        ),
        (
            lambda: CallableSupervisor(lambda s: False)(
                torch.ones(1, 1), torch.ones(1, dtype=torch.long), quiet(1)
            ),
            "device must return None, to leave",
        ),
        (
            lambda: CallableSupervisor(lambda s: "left")(torch.ones(1, 1), torch.ones(1, 1), quiet(1)),
            "what device returns must hold numbers",
        ),
        (
            lambda: InterventionController(RandomSupervisor(same, 0.5), 2).decide(
                torch.ones(2, 1), torch.ones(2, 1), valid=[True]
            ),
            "valid must have the shape",
        ),
        (lambda: InterventionController(RandomSupervisor(same, 0.5), 0), "num_envs must be"),
        (lambda: InterventionController(RandomSupervisor(same, 0.5), 1, n_steps=0), "n_steps must be"),
        (lambda: InterventionController(CallableSupervisor(same), 1, n_steps=3), "n_steps must be None"),
        (
            lambda: ValueSupervisor(
                same, lambda s, a: torch.full((1,), float("nan")), rule="gap", delta=0.0
            ).bad(torch.ones(1, 1), torch.ones(1, 1)),
            "q_ref must return finite",
        ),
        (
            lambda: ValueSupervisor(same, lambda s, a: torch.zeros(3, 3)).bad(
                torch.ones(2, 1), torch.ones(2, 1)
            ),
            "q_ref must return values of the shape",
        ),
        (
            lambda: RandomSupervisor(lambda s: s[:, :1], 1.0)(torch.ones(2, 3), torch.ones(2, 2), quiet(2)),
            "policy must return actions of the shape",
        ),
        (
            lambda: CallableSupervisor(lambda s: [1.0, 2.0])(torch.ones(1, 1), torch.ones(1, 1), quiet(1)),
            "device must return None or an action",
        ),
        (
            lambda: CallableSupervisor(lambda s: 0.5)(
                torch.ones(1, 1), torch.ones(1, dtype=torch.long), quiet(1)
            ),
            r"device must return .* of torch.int64, got torch.float",
        ),
        (
            lambda: InterventionController(RandomSupervisor(same, 0.5), 2).decide(
                torch.ones(1, 1), torch.ones(1, 1)
            ),
            "action must have 2 rows",
        ),
    ],
)
def test_what_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_what_is_no_supervisor():
    with pytest.raises(TypeError, match="CallableSupervisor"):
        InterventionController(lambda seen: None, 1)
    with pytest.raises(TypeError, match="device must be callable"):
        CallableSupervisor([0.5])
    for call, named in (
        (lambda: RandomSupervisor(0.5, 0.5), "policy"),
        (lambda: ScheduleSupervisor(None), "policy"),
        (lambda: ActionDistanceSupervisor("a", 0.5), "policy"),
        (lambda: ValueSupervisor(same, None), "q_ref"),
        (lambda: ValueSupervisor(same, same, 0.97), "reference"),
    ):
        with pytest.raises(TypeError, match=f"{named} must be callable"):
            call()


def test_a_step_that_only_resets_starts_nothing():
    controller = InterventionController(value(beta=1.0), 2)
    far, near = torch.full((2, 1), 2.0), torch.zeros(2, 1)
    controller.decide(STATES[:2], far, valid=np.array([False, True]))
    steps = [controller.decide(STATES[:2], near) for _ in range(4)]
    assert [step.intervened.tolist() for step in steps] == [[False, True]] * 3 + [[False, False]]
    schedule = InterventionController(ScheduleSupervisor(torch.zeros_like, wait=1, length=(2, 2)), 2)
    schedule.decide(near, near, valid=torch.tensor([False, True]))
    steps = [schedule.decide(near, near) for _ in range(4)]
    assert [step.intervened.tolist() for step in steps] == [
        [False, True],
        [True, True],
        [True, False],
        [False, True],
    ]


class Answers(Supervisor):
    def __init__(self, take, action):
        self.answer = take, action

    def __call__(self, observation, action, active, generator=None):
        return self.answer


def test_a_supervisor_of_ones_own_may_answer_in_arrays_but_not_in_other_numbers():
    controller = InterventionController(Answers(np.array([True, False]), np.full((2, 1), 0.5)), 2)
    assert controller.decide(None, torch.zeros(2, 1)).action.tolist() == [[0.5], [0.0]]
    small = torch.zeros(2, dtype=torch.int8)
    assert InterventionController(Answers([True] * 2, [1, 127]), 2).decide(None, small).action.tolist() == [
        1,
        127,
    ]
    for take, action, named in (
        ([True] * 2, [0.0, 1.0], r"supervisor must return actions of torch.int8, got torch.float"),
        ([True] * 2, [0, 257], r"supervisor must return actions of torch.int8, got torch.int64: \[0, 257\]"),
        ([True] * 2, [[0], [1]], r"supervisor must return actions of the shape \(2,\)"),
        ([True], [0, 1], r"take, of the supervisor, must have the shape \(2,\)"),
        ([0.5, 1.0], [0, 1], "take, of the supervisor, must be booleans"),
    ):
        with pytest.raises(ValueError, match=named):
            InterventionController(Answers(take, action), 2).decide(None, small)


def test_two_environments_may_be_given_one_schedule():
    schedule = ScheduleSupervisor(torch.zeros_like, wait=1, length=(2, 2))
    both, row = [InterventionController(schedule, 1) for _ in range(2)], torch.zeros(1, 1)
    flags = [[controller.decide(row, row).intervened.item() for controller in both] for _ in range(6)]
    assert flags == [[False] * 2, [True] * 2, [True] * 2] * 2
    own = value()
    assert InterventionController(own, 1).supervisor is own  # so that `own.beta = ...` is heard


def test_the_distance_of_actions_of_any_shape():
    def ask(own, action):
        supervisor = ActionDistanceSupervisor(lambda s: own, 1.0, beta=1.0)
        return supervisor(torch.zeros(len(action), 1), action, quiet(len(action)))[0].tolist()

    assert ask(torch.tensor([0, 2, 3]), torch.tensor([1, 0, 3])) == [False, True, False]
    assert ask(torch.zeros(2, 2, 2), torch.stack([torch.full((2, 2), 0.2), torch.full((2, 2), -0.3)])) == [
        False,
        True,
    ]


def test_a_margin_is_not_lost_in_half_precision():
    def q(s, a):  # -200 and -201, neighbours in bfloat16
        return (-200 - a[:, 0]).bfloat16()

    for delta, bad in ((0.9, True), (1.1, False)):
        supervisor = ValueSupervisor(lambda s: 0 * s, q, rule="gap", delta=delta)
        assert supervisor.bad(torch.zeros(1, 1), torch.ones(1, 1)).item() == bad


@pytest.mark.filterwarnings("error")
def test_arrays_that_torch_cannot_share():
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    locked = rows.copy()
    locked.flags.writeable = False
    for seen in (rows[::-1], locked):
        supervisor = RandomSupervisor(lambda s: s.numpy()[:, ::-1][:, :1], 1.0)
        _, action = supervisor(seen, torch.zeros(3, 1), quiet(3))
        assert action[:, 0].tolist() == seen[:, 1].tolist()
