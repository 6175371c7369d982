import torch
from helpers import small_net

from opposingsignals import feature_view, image_panel, text_panel


def test_the_shared_feature_and_the_outputs_answer():
    net, x, _ = small_net()
    view = feature_view(net, x, [0, 1], [5])
    torch.testing.assert_close(view.mean_a, x[:2].mean(0))
    torch.testing.assert_close(view.mean_b, x[5])
    torch.testing.assert_close(view.shared, x[[0, 1, 5]].mean(0) - x.mean(0))
    direction, step = view.shared / view.shared.norm(), 1e-5
    with torch.no_grad():
        change = (net(x[[0, 1, 5]] + step * direction) - net(x[[0, 1, 5]] - step * direction)) / (2 * step)
    torch.testing.assert_close(view.sensitivity, change.mean(0), rtol=1e-6, atol=1e-9)


def test_a_panel_shows_each_image_in_its_place():
    images = torch.arange(10.0)[:, None, None].expand(10, 2, 3)
    panel = image_panel(images, [[4, 2, 7], [1]], columns=2, rows=2, border=1)
    assert panel.shape == (14, 9)
    assert panel[[1, 1, 4, 8], [1, 5, 1, 1]].tolist() == [4.0, 2.0, 7.0, 1.0]
    assert panel[4, 5].item() == 0  # nothing there
    assert (panel[0] == 9).all()
    assert (panel[7] == 9).all()
    assert (panel[:, 4] == 9).all()


def test_a_panel_in_colour():
    images = torch.rand(5, 3, 4, 4)
    panel = image_panel(images, [[3]], columns=1)
    assert torch.equal(panel[1:5, 1:5].movedim(-1, 0), images[3])


def test_tokens_stand_in_their_context():
    tokens = torch.arange(24).view(2, 12)
    panel = text_panel(
        tokens,
        {"A": [13, 0], "B": [21]},
        lambda ids: "".join(f" {i}" for i in ids),
        shape=(2, 11),
        changes=torch.arange(22) / 10 - 1,
        context=2,
    )
    assert panel.splitlines() == [
        "A  sentence 1  token 3  +0.300   13 14[ 15] 16 17",
        "A  sentence 0  token 1  -1.000   0[ 1] 2 3",
        "B  sentence 1  token 11  +1.100   21 22[ 23]",
    ]
    whole = text_panel(tokens, {"A": [1, 0]}, str, shape=(2,), context=1, limit=1)
    assert whole == "A  sentence 1  [12, 13, 14]"
