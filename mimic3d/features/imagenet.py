"""ImageNet's mean and standard deviation of RGB in [0, 1], the normalisation of torchvision's classifiers."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
