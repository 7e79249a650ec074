"""Room: trained models and images in, a prediction folder on the images' own grids out."""
