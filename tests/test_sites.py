import pytest

from headwater.errors import UnknownSiteError
from headwater.sites import GLOBAL_NAMES, LAYER_NAMES, Site

EVERY = [Site(None, name) for name in GLOBAL_NAMES] + [
    Site(layer, name) for layer in (0, 3, 117) for name in LAYER_NAMES
]


@pytest.mark.parametrize("site", EVERY, ids=str)
def test_parsing_is_the_inverse_of_printing(site):
    assert Site.parse(str(site)) == site


def test_a_site_prints_as_layer_and_name():
    assert str(Site(3, "attn.q")) == "layers.3.attn.q"
    assert str(Site(None, "embed")) == "embed"


def test_a_misspelt_path_is_answered_with_the_closest_one():
    with pytest.raises(UnknownSiteError) as caught:
        Site.parse("layers.1.mlp.pst")
    message = str(caught.value)
    assert message.startswith("no site 'layers.1.mlp.pst'. Closest: 'layers.1.mlp.post', ")
    assert message.endswith("\nAll sites of a model: `headwater sites MODEL`.")


@pytest.mark.parametrize(
    "path", ["", "layers.attn.q", "layers.-1.attn.q", "layers.1.embed", "attn.q", "layers.1."]
)
def test_what_is_no_path_is_refused(path):
    with pytest.raises(UnknownSiteError, match="no site"):
        Site.parse(path)


def test_a_misspelt_name_is_refused_at_construction():
    with pytest.raises(UnknownSiteError, match=r"no site 'layers\.2\.attn\.zz'"):
        Site(2, "attn.zz")


def test_a_name_inside_a_layer_needs_a_layer():
    with pytest.raises(UnknownSiteError, match=r"no site 'attn\.q'"):
        Site(None, "attn.q")


def test_sites_sort_as_a_forward_pass_computes_them():
    inorder = [
        Site(None, "embed"),
        *(Site(layer, name) for layer in range(3) for name in LAYER_NAMES),
        Site(None, "final_norm"),
        Site(None, "logits"),
    ]
    shuffled = [*inorder[1::2], *inorder[::2]]
    assert sorted(shuffled, key=lambda site: site.order) == inorder


def test_the_residual_is_normed_for_the_mlp_after_attention_has_written():
    names = list(LAYER_NAMES)
    assert names.index("resid_mid") < names.index("mlp.in") < names.index("mlp.pre")
