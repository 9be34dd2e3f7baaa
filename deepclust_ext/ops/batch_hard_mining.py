from deepclust_ext.reference import HardPairs, batch_hard_mining
