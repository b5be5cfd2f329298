"""What every number of an analysis is: its name, how it was computed, and where the definition is from."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tubelet.analysis.similarity import RBF_CLIPS

BWSSL = "arXiv 2601.09040"
OURS = "ours"
_Z = "the mean token of a clip, as it leaves the block (the last layer's passes the final norm)"

_SCALE = "The last layer's tokens have passed the final norm, so its scale is not that of the layers below."


@dataclass(frozen=True)
class Definition:
    """name: short, for people. text: one or two sentences. source: a paper, or ours. unit: of the number."""

    name: str
    text: str
    source: str
    unit: str = ""


DEFINITIONS: dict[str, Definition] = {
    "linear": Definition(
        "linear probe, top-1",
        f"Share of test clips whose class a linear probe names. Features: {_Z}; standardised; logistic regression with "
        "scikit-learn's defaults (L2, C = 1, at most 1,000 iterations), fitted on training clips.",
        BWSSL,
    ),
    "macro_recall": Definition(
        "linear probe, macro recall",
        "The same probe's share of right answers in each class, averaged over classes, so that rare ones count alike.",
        BWSSL,
    ),
    "map": Definition(
        "retrieval, mAP",
        f"Every test clip asks for the others of its class by cosine similarity of {_Z}: mean average precision, the "
        "query left out, queries without another clip of their class skipped.",
        BWSSL,
    ),
    **{
        f"hit@{k}": Definition(
            f"retrieval, hit@{k}",
            f"Share of queries with a clip of their class among the {k} nearest.",
            BWSSL,
        )
        for k in (1, 5, 10)
    },
    "grating": Definition(
        "drifting gratings",
        "Mean over five targets (spatial frequency, orientation, temporal frequency, contrast, colour) of the accuracy "
        "of a linear probe for each: standardised, logistic regression with scikit-learn's defaults, three stratified "
        "folds, on computed clips of one drifting grating.",
        BWSSL,
    ),
    "double": Definition(
        "double gratings",
        "The same for nine targets of clips whose left and right half hold gratings of their own: each half's spatial "
        "frequency and orientation, and how the two are related.",
        BWSSL,
    ),
    "linear_occluded": Definition(
        "linear probe on one patch, top-1",
        "The linear probe fitted and tested on clips of which one patch is left, at a place drawn for each clip and "
        "the same in all its frames; all else is 0.",
        BWSSL,
    ),
    "occdrop": Definition(
        "OccDrop, the data's labels",
        "(accuracy on whole clips - accuracy on one patch) / accuracy on whole clips, the probe fitted anew on "
        "one-patch clips. High: what the probe reads is spread over the picture.",
        BWSSL,
    ),
    "occdrop_grating": Definition(
        "OccDrop, gratings", "The same of the mean accuracy over the gratings' five targets.", BWSSL
    ),
    "occdrop_double": Definition(
        "OccDrop, double gratings",
        "The same of the double gratings' nine targets, with one patch left in each half.",
        BWSSL,
    ),
    "cka_linear": Definition(
        "linear CKA",
        f"How alike two layers order the same clips, 0 to 1, whatever their axes, scale or width: centred kernel "
        f"alignment of {_Z}, biased estimator, over all clips.",
        f"arXiv 1905.00414, as in {BWSSL}",
    ),
    "cka_debiased": Definition(
        "debiased linear CKA",
        "The same from the unbiased HSIC estimator: unrelated features come out near 0 however few clips there are.",
        "arXiv 2010.15327",
    ),
    "cka_rbf": Definition(
        "RBF CKA",
        "The same with Gaussian kernels, which weigh near clips more; each side's gamma is 1 / (2 median distance²). "
        f"Of at most {RBF_CLIPS:,} clips.",
        BWSSL,
    ),
    "patch_similarity": Definition(
        "token similarity",
        "Mean cosine between different tokens of a clip, each token layer-normed without parameters first. 1: all "
        "tokens of a clip have become the same.",
        BWSSL,
    ),
    "token_norm": Definition("token norm", f"Mean Euclidean norm of a clip's tokens. {_SCALE}", OURS),
    "token_norm_sd": Definition(
        "token norm, spread", "Standard deviation of the norms of a clip's tokens.", OURS
    ),
    "token_outliers": Definition(
        "outlier tokens",
        "Share of a clip's tokens whose norm lies more than six robust standard deviations above the median: tokens "
        "that an encoder has turned into scratch paper stick out like that.",
        "ours, after arXiv 2309.16588",
    ),
    "attention_space": Definition(
        "attention distance in space",
        "How far from itself a token looks in the picture, expected over its attention weights, mean over heads.",
        "after arXiv 2010.11929",
        "pixels",
    ),
    "attention_time": Definition(
        "attention distance in time", "The same along time.", "after arXiv 2010.11929", "frames"
    ),
    "attention_entropy": Definition(
        "attention entropy",
        "Entropy of a token's attention weights as a share of the highest possible: 1 if it looks at all tokens alike.",
        OURS,
    ),
    "influence_elsewhere": Definition(
        "influence, share elsewhere",
        "One patch is taken away (set to 0 in all frames): the share of the change of all tokens that falls on other "
        "places of the picture. 0 in an encoder that does not mix.",
        OURS,
    ),
    "influence_distance": Definition(
        "influence, distance",
        "Mean distance between a token and the patch that was taken away, weighted by the token's change.",
        OURS,
        "patches",
    ),
    "effective_rank": Definition(
        "effective rank",
        f"exp of the entropy of the normalised eigenvalues of the covariance of {_Z}: over how many directions clips "
        "spread.",
        BWSSL,
    ),
    "participation_ratio": Definition(
        "participation ratio", "(sum of eigenvalues)² / sum of squared eigenvalues of that covariance.", BWSSL
    ),
    "isotropy": Definition(
        "largest eigenvalue",
        "The largest eigenvalue of that covariance over the mean one: 1 if all are equal.",
        BWSSL,
    ),
    "components_90": Definition(
        "components for 90 %", "How many principal components hold 90 % of the variance.", BWSSL
    ),
    "condition_number": Definition(
        "condition number", "Largest over smallest eigenvalue of that covariance.", BWSSL
    ),
    "uniformity": Definition(
        "uniformity",
        "log of the mean of exp(-2 d²) over random pairs of clips on the unit sphere: 0 if all are the same point, "
        "lower the more evenly they spread.",
        f"arXiv 2005.10242, as in {BWSSL}",
    ),
    "rankme": Definition(
        "RankMe",
        "exp of the entropy of the normalised singular values of the features, not centred.",
        "arXiv 2210.02885",
    ),
    "lidar": Definition(
        "LiDAR",
        "Effective rank of what tells clips apart beyond what tells views of one clip apart; needs several views.",
        "arXiv 2312.04000",
    ),
    "norm_mean": Definition("feature norm", f"Mean Euclidean norm of the clips' features. {_SCALE}", BWSSL),
    "norm_sd": Definition("feature norm, spread", "Standard deviation of those norms.", BWSSL),
    "norm_min": Definition("feature norm, smallest", "The smallest of those norms.", BWSSL),
    "norm_max": Definition("feature norm, largest", "The largest of those norms.", BWSSL),
    "cosine_mean": Definition("cosine of pairs", "Mean cosine over 20,000 random pairs of clips.", BWSSL),
    "cosine_sd": Definition("cosine of pairs, spread", "Standard deviation of those cosines.", BWSSL),
    "euclid_mean": Definition("distance of pairs", "Mean Euclidean distance over the same pairs.", BWSSL),
    "euclid_sd": Definition("distance of pairs, spread", "Standard deviation of those distances.", BWSSL),
    "gain_linear": Definition(
        "gain, linear probe",
        "Top-1 of one layer minus that of the layer before, on the same test clips; interval: paired bootstrap over "
        "groups.",
        OURS,
    ),
    "gain_map": Definition("gain, mAP", f"The same of retrieval's mAP ({BWSSL}, figure 4c's y axis).", BWSSL),
    "geometry_vs_gain": Definition(
        "geometry against gain",
        "One dot per encoder and step from a layer to the next: linear CKA of the two (across), mAP of the later minus "
        "mAP of the earlier (up), in shares. Lines: least squares; they leave out the step from the embedding and "
        "untrained encoders, which the paper does not have.",
        f"{BWSSL}, figure 4c",
    ),
    "influence": Definition(
        "influence of a patch",
        "One patch of the picture is set to 0 in all frames of a clip; shown is how much every token changes, "
        "|z' - z| / |z|, as it leaves its block.",
        OURS,
    ),
    "saturation": Definition(
        "what fewer layers cost",
        "The linear probe on the first so many blocks and the final norm, as a cut encoder hands them out, and its "
        "paired difference from the whole. A block changes nothing measurable if its gains in probe and mAP are within "
        "the noise and its CKA, read through the norm, is above that of the nearest steps beyond the noise. Time: the "
        "fastest of five alternating turns of two clips on this machine.",
        f"ours, after {BWSSL}",
    ),
    "cka_with_final": Definition(
        "linear CKA with the end of the run",
        "How alike a layer at a checkpoint orders the clips as the same layer does when training is over.",
        OURS,
    ),
}


def told() -> dict[str, dict[str, str]]:
    """The definitions as JSON."""
    return {metric: asdict(definition) for metric, definition in DEFINITIONS.items()}
