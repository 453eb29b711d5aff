"""What the paper reports, for the columns beside ours.

BBQRec (arXiv:2504.06636), Tables 2 to 6. Rows have the names and columns the order of
experiments.py. Its figures show no numbers.
"""

# Recall@5, Recall@10, NDCG@5, NDCG@10.
TABLE2 = {
  "beauty": {
    "GRU4Rec": (0.0475, 0.0727, 0.0327, 0.0408),
    "BERT4Rec": (0.0602, 0.0856, 0.0417, 0.0498),
    "SASRec": (0.0641, 0.0885, 0.0466, 0.0544),
    "GRU4Rec_F": (0.0537, 0.0800, 0.0373, 0.0457),
    "SASRec_F": (0.0662, 0.0933, 0.0483, 0.0570),
    "NOVA-BERT": (0.0708, 0.1003, 0.0513, 0.0608),
    "MISSRec": (0.0749, 0.1024, 0.0538, 0.0626),
    "VQ-Rec": (0.0728, 0.1012, 0.0527, 0.0618),
    "TIGER": (0.0742, 0.1039, 0.0534, 0.0629),
    "LETTER": (0.0750, 0.1063, 0.0534, 0.0642),
    "BBQRec": (0.0815, 0.1147, 0.0576, 0.0683),
  },
  "sports": {
    "GRU4Rec": (0.0316, 0.0480, 0.0215, 0.0267),
    "BERT4Rec": (0.0318, 0.0506, 0.0212, 0.0273),
    "SASRec": (0.0353, 0.0499, 0.0250, 0.0297),
    "GRU4Rec_F": (0.0330, 0.0508, 0.0220, 0.0278),
    "SASRec_F": (0.0403, 0.0545, 0.0286, 0.0332),
    "NOVA-BERT": (0.0411, 0.0570, 0.0287, 0.0353),
    "MISSRec": (0.0421, 0.0587, 0.0296, 0.0350),
    "VQ-Rec": (0.0434, 0.0620, 0.0300, 0.0360),
    "TIGER": (0.0450, 0.0643, 0.0312, 0.0374),
    "LETTER": (0.0467, 0.0664, 0.0323, 0.0386),
    "BBQRec": (0.0501, 0.0721, 0.0344, 0.0415),
  },
  "clothing": {
    "GRU4Rec": (0.0166, 0.0252, 0.0109, 0.0137),
    "BERT4Rec": (0.0182, 0.0291, 0.0120, 0.0155),
    "SASRec": (0.0204, 0.0278, 0.0138, 0.0162),
    "GRU4Rec_F": (0.0182, 0.0297, 0.0117, 0.0154),
    "SASRec_F": (0.0262, 0.0383, 0.0181, 0.0220),
    "NOVA-BERT": (0.0287, 0.0415, 0.0205, 0.0254),
    "MISSRec": (0.0361, 0.0533, 0.0246, 0.0301),
    "VQ-Rec": (0.0298, 0.0428, 0.0200, 0.0242),
    "TIGER": (0.0323, 0.0482, 0.0218, 0.0270),
    "LETTER": (0.0345, 0.0528, 0.0250, 0.0306),
    "BBQRec": (0.0402, 0.0589, 0.0272, 0.0336),
  },
  "toys": {
    "GRU4Rec": (0.0506, 0.0727, 0.0363, 0.0434),
    "BERT4Rec": (0.0632, 0.0863, 0.0447, 0.0522),
    "SASRec": (0.0691, 0.0911, 0.0502, 0.0573),
    "GRU4Rec_F": (0.0572, 0.0810, 0.0402, 0.0479),
    "SASRec_F": (0.0772, 0.1039, 0.0573, 0.0659),
    "NOVA-BERT": (0.0826, 0.1169, 0.0575, 0.0687),
    "MISSRec": (0.0854, 0.1164, 0.0612, 0.0713),
    "VQ-Rec": (0.0829, 0.1117, 0.0597, 0.0690),
    "TIGER": (0.0854, 0.1179, 0.0620, 0.0725),
    "LETTER": (0.0864, 0.1189, 0.0627, 0.0731),
    "BBQRec": (0.0968, 0.1299, 0.0693, 0.0800),
  },
}

TABLE3 = {
  "beauty": {
    "without MIM": (0.0788, 0.1127, 0.0556, 0.0660),
    "without Rec": (0.0755, 0.1061, 0.0529, 0.0638),
    "unshared codebooks": (0.0764, 0.1109, 0.0537, 0.0648),
    "BBQRec": TABLE2["beauty"]["BBQRec"],
  },
  "sports": {
    "without MIM": (0.0487, 0.0683, 0.0331, 0.0395),
    "without Rec": (0.0469, 0.0663, 0.0321, 0.0383),
    "unshared codebooks": (0.0473, 0.0683, 0.0333, 0.0391),
    "BBQRec": TABLE2["sports"]["BBQRec"],
  },
  "clothing": {
    "without MIM": (0.0386, 0.0580, 0.0262, 0.0321),
    "without Rec": (0.0340, 0.0533, 0.0246, 0.0305),
    "unshared codebooks": (0.0379, 0.0577, 0.0259, 0.0320),
    "BBQRec": TABLE2["clothing"]["BBQRec"],
  },
  "toys": {
    "without MIM": (0.0947, 0.1280, 0.0670, 0.0790),
    "without Rec": (0.0875, 0.1216, 0.0626, 0.0736),
    "unshared codebooks": (0.0935, 0.1274, 0.0656, 0.0778),
    "BBQRec": TABLE2["toys"]["BBQRec"],
  },
}

# Table 4 prints BBQRec's Recall@10 on Clothing as 0.0598; Tables 2 and 3 have 0.0589.
TABLE4 = {
  "beauty": {
    "S: no similarity": (0.0778, 0.1093, 0.0541, 0.0642),
    "E: inherited embeddings": (0.0768, 0.1075, 0.0535, 0.0634),
    "BBQRec": TABLE2["beauty"]["BBQRec"],
  },
  "sports": {
    "S: no similarity": (0.0478, 0.0678, 0.0333, 0.0397),
    "E: inherited embeddings": (0.0442, 0.0637, 0.0307, 0.0370),
    "BBQRec": TABLE2["sports"]["BBQRec"],
  },
  "clothing": {
    "S: no similarity": (0.0384, 0.0577, 0.0261, 0.0323),
    "E: inherited embeddings": (0.0345, 0.0525, 0.0232, 0.0289),
    "BBQRec": TABLE2["clothing"]["BBQRec"],
  },
  "toys": {
    "S: no similarity": (0.0917, 0.1269, 0.0639, 0.0752),
    "E: inherited embeddings": (0.0869, 0.1228, 0.0595, 0.0710),
    "BBQRec": TABLE2["toys"]["BBQRec"],
  },
}

# Items with the semantic ID of another, at L = 2, 3, 4.
TABLE5 = {
  "toys": {
    "RQ-VAE": (2154, 466, 163),
    "LETTER": (2522, 167, 19),
    "BBQRec": (12, 0, 0),
  },
  "clothing": {
    "RQ-VAE": (6014, 1173, 771),
    "LETTER": (6270, 395, 23),
    "BBQRec": (6, 1, 0),
  },
}

# Seconds a user for the ten best items, beam 50 and 100; on an NVIDIA A800.
TABLE6 = {
  "beauty": {
    "TIGER": (0.010, 0.015),
    "BBQRec": (0.019, 0.024),
  },
}

OF = dict(table2=TABLE2, table3=TABLE3, table4=TABLE4, table5=TABLE5, table6=TABLE6)
