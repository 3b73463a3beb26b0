"""The inference server: what deployments ask for, held in memory and answering."""
