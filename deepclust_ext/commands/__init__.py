"""The commands of `deepclust-ext`, one file each."""
