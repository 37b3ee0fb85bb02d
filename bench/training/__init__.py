"""Where the matcher's coefficients come from: examples out of a labelled stream, and the fit with numpy and scipy."""
