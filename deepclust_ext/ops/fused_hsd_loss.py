from deepclust_ext.reference import HSDStats, fused_hsd_loss
