"""The VAE: layout, network, likelihoods, ELBO, weights; torch alone, no Ray, Arrow or URIs."""
