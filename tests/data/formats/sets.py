"""The data sets of TensorFlow Datasets that the tests prepare in tiny."""

# Set, its splits in training and validation, classes: the registered ones, with their real splits.
SETS = {"imagenet2012": ("train", "validation", 1000), "cifar10": ("train", "test", 10),
        "cifar100": ("train", "test", 100), "imagenette": ("train", "validation", 10),
        "i_naturalist2018": ("train", "validation", 8142),
        "i_naturalist2021": ("train", "val", 10_000)}
