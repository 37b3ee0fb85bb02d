"""What tests of several rooms share: a cluster of one namespace that runs its pods as local processes, and the rules of PodSecurity."""
