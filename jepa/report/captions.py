"""Titles and captions of the figures in a report."""

from __future__ import annotations

from matplotlib.figure import Figure

from jepa.evaluation_run import EvaluationRun

__all__ = ["INPUTS_TITLE", "SECTIONS", "caption_of", "overview_caption"]

INPUTS_TITLE = "The model's inputs"
VIEWS_CAPTION = (
    "The predictor is given the features of a view and a movement, and predicts the features of the view after it. A "
    "linear decoder, fitted to features of views of training images, turns features into pixels. The decoded truth "
    "shows how much of the pixels the features contain at all. R² is 1 if all pixels are right and 0 if each is the "
    "average. On the right is the one of 32 views of the same image whose features are closest to the predicted ones."
)
PIXELS_CAPTION = (
    "The model is given the visible patches and predicts the pixels of the others. R² is 1 if all of their pixels are "
    "right, and 0 if each is {reference}."
)
NORMALIZED_CAPTION = (
    " The model predicts pixels relative to the mean and standard deviation of their patch, which it does not know: "
    "the picture takes them from the image, so the average color of a patch is never wrong. What the model adds is the "
    "difference between the third picture and the fourth."
)
CONVOLUTIONS_CAPTION = (
    " A small convolutional network, fitted likewise, decodes all hidden patches of an image together."
)
OVERVIEW_CAPTIONS = {  # by the title of a column
    "features": "patches with similar features have similar colors",
    "attention": "attention of the central patch (red: more than uniform attention, blue: less)",
    "prediction": "the context that the model is given, and what it predicts of hidden patches, as pixels",
}
SECTIONS = {
    "features": (
        "Features of patches",
        "The first three principal axes of the features of all patches as red, green and blue, on common axes for all "
        "images of a row, after the average feature at each position is subtracted. Parts of objects that have the "
        "same color in different images are alike to the model. An untrained model mostly shows brightness and edges. "
        "Colors of different rows cannot be compared.",
    ),
    "similarity": (
        "Similarity of patches",
        "Cosine similarity of the outlined patch to all patches of its image and of the images with the most similar "
        "patch (red: similar, blue: dissimilar). The average feature at each position is subtracted first.",
    ),
    "predictions": (
        "What the model predicts",
        "The predictor is given the context and predicts the features of hidden patches. A linear decoder, fitted to "
        "features of training images, turns features into pixels. The decoded truth shows how much of the pixels the "
        "features contain at all, and is what to compare the prediction with. R² is 1 if all pixels are right and 0 "
        "if each is the average. Where several contents are possible, the prediction is their blurred average. The "
        "nearest patches need no decoder: their features are the closest to the predicted ones among test images.",
    ),
    "errors": (
        "Errors of the predictions",
        "Squared errors of the predicted features, divided by the variance of the features: predicting the average "
        "feature would have an error of 1. Below are the images with the smallest and the largest errors.",
    ),
    "neighbors": (
        "Nearest training images",
        "Test images, those that their 20 nearest neighbors classify wrongly first (class → class of the neighbors), "
        "or, without labels, the most isolated ones first; and their nearest training images by the features of the "
        "model and by pixels. Blue frames: the same class; red frames: another one. This is not a random sample.",
    ),
    "classes": (
        "Classes",
        "Above, the accuracy of each class, by decreasing accuracy of the linear probe on trained features; lines are "
        "standard errors for the number of test images of the class. Below, the classes that this probe predicts for "
        "the images of each class: the matrix of all classes, or, of more than 50 classes, the most frequent errors.",
    ),
    "curves": (
        "Training curves",
        "The losses and the online evaluation during training. A falling loss does not imply that the model learns: "
        "collapsed targets are easy to predict. Online kNN is the accuracy on held-out training images. "
        "The band is its standard error for this number of images: changes within it may be due to chance. RankMe is "
        "the effective rank of the features.",
    ),
    "checkpoints": (
        "Checkpoints",
        "The linear probe of each kept checkpoint (step 0 is the untrained encoder) against measures that need no "
        "labels. A ring marks the checkpoint that a measure would choose: that with the highest value, for α-ReQ that "
        "nearest to 1 (dotted). ρ is Spearman's rank correlation: 1 if the measure ranks checkpoints as the probe "
        "does. CLID adds cluster learnability and intrinsic dimension, standardized over these checkpoints.",
    ),
    "umap": (
        "Feature space",
        "",  # see projection_caption
    ),
    "attention": (
        "Attention",
        "Attention of the outlined patch to all patches, averaged over heads, divided by uniform attention: red "
        "patches get more, blue patches less, and gray ones as much as if the model attended to all patches equally. "
        "Rollout combines all layers (for an Energy Transformer, all steps). Normalized entropy is 1 if a patch "
        "attends to all patches equally, and 0 if it attends to a single patch.",
    ),
    "dimension": (
        "Correlation dimension",
        "C(r) is the fraction of image pairs closer than r; its scaling region is shaded. Boundaries and curvature "
        "lower the local slope as r grows, so a line in r² is fitted to the filled points. Its intercept at r = 0 is "
        "the dimension.",
    ),
    "spectrum": (
        "Spectrum",
        "The explained variance of the features along their principal axes. In collapsed features, most axes have "
        "almost no variance.",
    ),
    "masks": (
        INPUTS_TITLE,
        "The model predicts the representations of the target blocks from the context, or the pixels of the masked "
        "patches from the visible ones.",
    ),
    "saccades": (
        INPUTS_TITLE,
        "Two fixations of each image and the saccade between them: shift in view sides, rotation and zoom. If the "
        "model has a predictor, the lower plots show its squared error divided by the variance of the embeddings, and "
        "how often its prediction is closest to the correct one of several views of the same image. The last plots "
        "show R² of the movement, regressed from the features of both views, and the accuracy of kNN for averages of "
        "the features of several fixations, with its standard error.",
    ),
}
PROJECTIONS = {
    "UMAP": "The projection is UMAP with a fixed seed; distances between clusters mean little.",
    "PCA": "The projection is PCA: the two principal axes of the features. UMAP needs more images.",
}


def overview_caption(figure: Figure) -> str:
    """Return the caption of the figure 'overview', whose columns depend on the model."""
    titles = {axes.get_title("left") for axes in figure.axes}
    parts = [text for title, text in OVERVIEW_CAPTIONS.items() if title in titles]
    return f"Test images as the trained model sees them: {'; '.join(parts)}."


def caption_of(name: str, run: EvaluationRun, figure: Figure) -> str:
    """Return the caption of a figure of a run."""
    caption = SECTIONS[name][1]
    if name == "umap":
        return projection_caption(figure)
    if name == "predictions":
        return predictions_caption(run)
    return f"{caption} {run.near_duplicates}." if name == "neighbors" else caption


def predictions_caption(run: EvaluationRun) -> str:
    """Return the caption of the figure 'predictions'."""
    if run.view_predictions:
        return VIEWS_CAPTION
    if pixels := run.pixel_predictions:
        caption = PIXELS_CAPTION.format(reference=pixels.scores()["reference"])
        return caption + NORMALIZED_CAPTION * pixels.normalized
    caption = SECTIONS["predictions"][1]
    return caption + CONVOLUTIONS_CAPTION if run.patch_predictions and run.patch_predictions.convolutional else caption


def projection_caption(figure: Figure) -> str:
    """Return the caption of the figure 'umap', whose titles begin with the methods that were used."""
    methods = dict.fromkeys(axes.get_title("left").partition(":")[0] for axes in figure.axes)
    start = "Up to 5,000 test images; images with similar features are close to each other."
    return " ".join([start, *(PROJECTIONS[method] for method in methods)])
