"""Published accuracies in percent, with where they stand; what is not at hand is absent."""

AND_TABLE_1 = "Huang et al. 2019, table 1"
AND_TABLE_2 = "Huang et al. 2019, table 2"
AND_REVIEW = "Huang et al. 2019, review version in the authors' repository"
SUPER_AND_2 = "AND as quoted by Super-AND, table 2"

SMALL_SETS = {
    # row -> kNN and linear classifier on conv5, each of CIFAR-10, CIFAR-100, SVHN
    "DeepCluster": ((62.3, 22.7, 84.9), (77.9, 41.9, 92.0)),
    "Instance": ((60.3, 32.7, 79.8), (70.1, 39.4, 89.3)),
    "AND": ((74.8, 41.5, 90.9), (77.6, 47.9, 93.7)),
    "Supervised": ((91.9, 69.7, 96.5), (91.8, 71.0, 96.1)),
}
IMAGENET = {
    # row -> linear classifiers on conv1..conv5 and the embedding, kNN
    "Random": (11.6, 17.1, 16.9, 16.3, 14.1, 12.0, 3.5),
    "Supervised": (19.3, 36.3, 44.2, 48.3, 50.5, None, None),
    "NAT": (None, None, None, None, None, 36.0, None),
    "DeepCluster": (13.4, 32.3, 41.0, 39.6, 38.2, None, 26.8),
    "Instance": (16.8, 26.5, 31.8, 34.1, 35.6, None, 31.3),
    "AND": (15.6, 27.0, 35.9, 39.7, 37.9, 36.7, 31.3),
}
FINE_GRAINED = {"cub200": 14.4, "dogs": 32.3}
BACKBONES = {"alexnet": 74.8, "resnet18": 86.3, "resnet101": 88.4}
NEIGHBOURHOOD_SIZES = {1: 86.3, 10: 83.0, 50: 79.3, 100: 78.2}
