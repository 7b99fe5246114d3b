"""Graphs, tables, time series, proteins, and the building blocks of attention libraries."""

from benchmarks.models.catalogue.entry import Dim, Input, ZooModel, floats, function, ids, module, text

_GNN = "from torch_geometric.nn import models\n"
_GRAPH = {"x": floats("nodes", 32), "edge_index": ids(16, 2, "edges")}
_GRAPH_DIMS = {"nodes": Dim(min=16), "edges": Dim(min=1)}


def _graph(name: str, make: str, dims=None) -> ZooModel:
    return ZooModel(
        f"pyg-{name}", "torch-geometric", module(_GNN, make, "x, edge_index", "self.net(x, edge_index)"),
        _GRAPH, dims or _GRAPH_DIMS, ("embeddings",),
    )  # fmt: skip


_GRAPHS = (
    _graph("gcn", "models.GCN(32, 64, 3, 8)"),
    _graph("gat", "models.GAT(32, 64, 2, 8, heads=4)"),
    _graph("gatv2", "models.GAT(32, 64, 2, 8, v2=True)", {"nodes": Dim(16, 512), "edges": Dim(1, 4096)}),
    _graph("graphsage", "models.GraphSAGE(32, 64, 3, 8)"),
    _graph("gin", "models.GIN(32, 64, 3, 8)"),
    _graph("edgecnn", "models.EdgeCNN(32, 64, 2, 8)"),
    _graph("pna", "models.PNA(32, 64, 2, 8, aggregators=['mean', 'max'], scalers=['identity', 'amplification'], deg=torch.tensor([0, 4, 8, 4]))"),
    ZooModel("pyg-attentivefp", "torch-geometric", module(_GNN, "models.AttentiveFP(32, 64, 1, 8, 2, 2)", "x, edge_index, edge_attr, batch", "self.net(x, edge_index, edge_attr, batch)"),
             {**_GRAPH, "edge_attr": floats("edges", 8), "batch": ids(1, "nodes")}, _GRAPH_DIMS, ("graph",)),
    ZooModel("pyg-pool", "torch-geometric", text("""
        from torch_geometric.nn import GCNConv, global_mean_pool


        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.convolution = GCNConv(32, 64)
                self.head = nn.Linear(64, 2)

            def forward(self, x, edge_index, batch):
                return self.head(global_mean_pool(self.convolution(x, edge_index).relu(), batch, size=4))
        """), {**_GRAPH, "batch": ids(4, "nodes")}, _GRAPH_DIMS, ("logits",)),
    ZooModel("pyg-linkx", "torch-geometric", module(_GNN, "models.MLP([32, 64, 8], norm='batch_norm')", "x", "self.net(x)"), {"x": floats("batch", 32)}, outputs=("logits",)),
    ZooModel("e3nn-linear", "e3nn", function("from e3nn import o3\n", "o3.Linear('16x0e + 8x1o', '8x0e + 4x1o')"), {"features": floats("batch", 40)}, outputs=("features_out",), entry="build"),
    ZooModel("e3nn-tensor-product", "e3nn", module("from e3nn import o3\n", "o3.FullyConnectedTensorProduct('4x0e + 4x1o', '1x0e + 1x1o', '4x0e + 4x1o')", "x, y", "self.net(x, y)"), {"x": floats("batch", 16), "y": floats("batch", 4)}, outputs=("product",)),
)  # fmt: skip

_RTDL = "import rtdl_revisiting_models as rtdl\n"
_TABLES = (
    ZooModel("tabnet", "pytorch-tabnet", text("""
        from pytorch_tabnet.tab_network import TabNet


        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = TabNet(16, 3, group_attention_matrix=torch.eye(16))

            def forward(self, x):
                return self.net(x)[0]
        """), {"x": floats("batch", 16)}, outputs=("logits",)),
    ZooModel("tabnet-embeddings", "pytorch-tabnet", text("""
        from pytorch_tabnet.tab_network import TabNet


        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = TabNet(
                    6, 2, cat_idxs=[4, 5], cat_dims=[5, 7], cat_emb_dim=[2, 3], mask_type="entmax",
                    group_attention_matrix=torch.eye(6),
                )

            def forward(self, numbers, categories):
                return self.net(torch.cat([numbers, categories.to(numbers.dtype)], 1))[0]
        """), {"numbers": floats("batch", 4), "categories": ids(5, "batch", 2)}, outputs=("logits",)),
    ZooModel("rtdl-mlp", "rtdl_revisiting_models", function(_RTDL, "rtdl.MLP(d_in=20, d_out=2, n_blocks=3, d_block=128, dropout=0.1)"), {"x": floats("batch", 20)}, outputs=("logits",), entry="build"),
    ZooModel("rtdl-resnet", "rtdl_revisiting_models", function(_RTDL, "rtdl.ResNet(d_in=20, d_out=2, n_blocks=3, d_block=128, d_hidden=None, d_hidden_multiplier=2.0, dropout1=0.1, dropout2=0.0)"), {"x": floats("batch", 20)}, {"batch": Dim(max=1024)}, outputs=("logits",), entry="build"),
    ZooModel("rtdl-ft-transformer", "rtdl_revisiting_models", module(_RTDL, "rtdl.FTTransformer(n_cont_features=8, cat_cardinalities=[4, 7, 11], d_out=2, **rtdl.FTTransformer.get_default_kwargs())", "numbers, categories", "self.net(numbers, categories)"),
             {"numbers": floats("batch", 8), "categories": ids(4, "batch", 3)}, outputs=("logits",)),
    ZooModel("rtdl-periodic-embeddings", "rtdl_num_embeddings", function("from rtdl_num_embeddings import PeriodicEmbeddings\n", "nn.Sequential(PeriodicEmbeddings(8, 16, lite=False), nn.Flatten(), nn.Linear(128, 2))"), {"x": floats("batch", 8)}, outputs=("logits",), entry="build"),
    ZooModel("rtdl-piecewise-embeddings", "rtdl_num_embeddings", function("from rtdl_num_embeddings import PiecewiseLinearEmbeddings\n", "nn.Sequential(PiecewiseLinearEmbeddings([torch.linspace(-2, 2, 9)] * 8, 12, activation=False, version='B'), nn.Flatten(), nn.Linear(96, 2))"), {"x": floats("batch", 8)}, outputs=("logits",), entry="build"),
    ZooModel("tabm", "tabm", module("from tabm import TabM\n", "TabM.make(n_num_features=8, cat_cardinalities=[4, 7], d_out=2)", "numbers, categories", "self.net(numbers, categories)"),
             {"numbers": floats("batch", 8), "categories": ids(4, "batch", 2)}, outputs=("logits",)),
    ZooModel("tab-transformer", "tab-transformer-pytorch", module("from tab_transformer_pytorch import TabTransformer\n", "TabTransformer(categories=(10, 5, 6), num_continuous=10, dim=32, depth=6, heads=8, mlp_act=nn.ReLU())", "categories, numbers", "self.net(categories, numbers)"),
             {"categories": ids(5, "batch", 3), "numbers": floats("batch", 10)}, outputs=("logit",)),
    ZooModel("lucid-ft-transformer", "tab-transformer-pytorch", module("from tab_transformer_pytorch import FTTransformer\n", "FTTransformer(categories=(10, 5, 6), num_continuous=10, dim=32, depth=6, heads=8)", "categories, numbers", "self.net(categories, numbers)"),
             {"categories": ids(5, "batch", 3), "numbers": floats("batch", 10)}, {"batch": Dim(max=256)}, ("logit",)),
)  # fmt: skip


def _forecast(name: str, arguments: str = "") -> ZooModel:
    """A univariate model of neuralforecast: windows of 48 values in, 12 out."""
    source = text(f"""
        from neuralforecast.models import {name}


        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = {name}(h=12, input_size=48{arguments})

            def forward(self, values):
                batch = dict(
                    insample_y=values, insample_mask=torch.ones_like(values), futr_exog=None, hist_exog=None, stat_exog=None
                )
                return self.net(batch)
        """)
    return ZooModel(
        f"neuralforecast-{name.lower()}",
        "neuralforecast",
        source,
        {"values": floats("batch", 48, 1)},
        outputs=("forecast",),
    )


_SERIES = (
    *(_forecast(name) for name in ("NBEATS", "NHITS", "DLinear", "NLinear", "TiDE", "PatchTST", "TimesNet", "TCN", "GRU", "LSTM", "MLP", "KAN", "BiTCN", "TFT", "DeepNPTS")),
    _forecast("FEDformer"),
    _forecast("Autoformer"),
    _forecast("Informer"),
    _forecast("VanillaTransformer"),
    *(_forecast(name, ", n_series=1") for name in ("TSMixer", "SOFTS", "TimeMixer")),
    ZooModel("pytorch-tcn", "pytorch-tcn", function("from pytorch_tcn import TCN\n", "TCN(num_inputs=8, num_channels=[32, 32, 32], kernel_size=3)"), {"x": floats("batch", 8, "steps")}, {"steps": Dim(4, 500)}, ("features",), entry="build"),
    ZooModel("gluonts-feedforward", "gluonts", module("from gluonts.torch.model.simple_feedforward.module import SimpleFeedForwardModel\n", "SimpleFeedForwardModel(prediction_length=12, context_length=48, hidden_dimensions=[64, 64])", "past", "(lambda output: (*output[0], output[1], output[2]))(self.net(past))"), {"past": floats("batch", 48)}, outputs=None),
    ZooModel("gluonts-patchtst", "gluonts", module("from gluonts.torch.model.patch_tst.module import PatchTSTModel\nfrom gluonts.torch.distributions import StudentTOutput\n", "PatchTSTModel(prediction_length=12, context_length=48, patch_len=8, stride=4, padding_patch='end', d_model=32, nhead=4, dim_feedforward=64, dropout=0.0, activation='relu', norm_first=False, num_encoder_layers=2, scaling='mean', distr_output=StudentTOutput())", "past, observed", "(lambda output: (*output[0], output[1], output[2]))(self.net(past, observed))"),
             {"past": floats("batch", 48), "observed": floats("batch", 48, range=(0.5, 1.0))}, outputs=None),
    ZooModel("chronos-bolt-encoder", "chronos-forecasting", text("""
        import transformers
        from chronos.chronos_bolt import ChronosBoltModelForForecasting


        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                config = transformers.T5Config(
                    d_model=128, d_kv=32, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=2,
                    feed_forward_proj="relu", pad_token_id=0, reg_token_id=1, decoder_start_token_id=0,
                )
                config.chronos_config = dict(
                    context_length=128, prediction_length=16, input_patch_size=16, input_patch_stride=16,
                    quantiles=[0.1, 0.5, 0.9], use_reg_token=True,
                )
                self.net = ChronosBoltModelForForecasting(config)

            def forward(self, context):
                return self.net(context).quantile_preds
        """), {"context": floats("batch", 128)}, outputs=("quantiles",)),
)  # fmt: skip

_TOKENS = {"tokens": ids(20000, "batch", "sequence")}
_SEQUENCE = {"sequence": Dim(max=512)}


def _x(name: str, layers: str, more: str = "") -> ZooModel:
    return ZooModel(
        f"x-transformers-{name}", "x-transformers",
        module("from x_transformers import ContinuousTransformerWrapper, Decoder, Encoder, TransformerWrapper, ViTransformerWrapper\n",
               f"TransformerWrapper(num_tokens=20000, max_seq_len=512, attn_layers={layers}{more})", "tokens", "self.net(tokens)"),
        _TOKENS, _SEQUENCE, ("logits",),
    )  # fmt: skip


_ATTENTION = (
    _x("decoder", "Decoder(dim=256, depth=4, heads=8)"),
    _x("rotary", "Decoder(dim=256, depth=4, heads=8, rotary_pos_emb=True)"),
    _x("alibi", "Decoder(dim=256, depth=4, heads=8, alibi_pos_bias=True, alibi_num_heads=4)"),
    _x("relative", "Encoder(dim=256, depth=4, heads=8, rel_pos_bias=True)"),
    _x("flash", "Encoder(dim=256, depth=4, heads=8, attn_flash=True, ff_glu=True, use_rmsnorm=True)"),
    _x("kv-heads", "Decoder(dim=256, depth=4, heads=8, attn_kv_heads=2, attn_qk_norm=True, sandwich_norm=True)"),
    _x("memory", "Encoder(dim=256, depth=4, heads=8, attn_num_mem_kv=16, attn_pre_talking_heads=True)", ", num_memory_tokens=8"),
    ZooModel("x-transformers-vit", "x-transformers", module("from x_transformers import Encoder, ViTransformerWrapper\n", "ViTransformerWrapper(image_size=128, patch_size=16, num_classes=100, attn_layers=Encoder(dim=256, depth=4, heads=8))", "image", "self.net(image)"), {"image": floats("batch", 3, 128, 128, range=(0, 1))}, outputs=("logits",)),
    ZooModel("x-transformers-continuous", "x-transformers", module("from x_transformers import ContinuousTransformerWrapper, Encoder\n", "ContinuousTransformerWrapper(dim_in=32, dim_out=16, max_seq_len=256, attn_layers=Encoder(dim=256, depth=4, heads=8))", "values, mask", "self.net(values, mask=mask)"),
             {"values": floats("batch", "steps", 32), "mask": Input("bool", ("batch", "steps"))}, {"steps": Dim(max=256)}, ("features",)),
    ZooModel("x-transformers-seq2seq", "x-transformers", module("from x_transformers import Decoder, Encoder, TransformerWrapper\n", "nn.ModuleList([TransformerWrapper(num_tokens=8000, max_seq_len=256, return_only_embed=True, attn_layers=Encoder(dim=128, depth=2, heads=4)), TransformerWrapper(num_tokens=8000, max_seq_len=256, attn_layers=Decoder(dim=128, depth=2, heads=4, cross_attend=True))])", "source, target", "self.net[1](target, context=self.net[0](source))"),
             {"source": ids(8000, "batch", "length"), "target": ids(8000, "batch", "steps")}, {"length": Dim(max=256), "steps": Dim(max=256)}, ("logits",)),
    ZooModel("performer", "performer-pytorch", module("from performer_pytorch import PerformerLM\n", "PerformerLM(num_tokens=20000, max_seq_len=512, dim=256, depth=3, heads=8, causal=False)", "tokens", "self.net(tokens)"), _TOKENS, {"sequence": Dim(max=512)}, ("logits",)),
    ZooModel("linformer", "linformer", module("from linformer import LinformerLM\n", "LinformerLM(num_tokens=20000, dim=256, seq_len=256, depth=3, heads=8, k=64)", "tokens", "self.net(tokens)"), {"tokens": ids(20000, "batch", 256)}, outputs=("logits",)),
    ZooModel("local-attention", "local-attention", module("from local_attention.transformer import LocalTransformer\n", "LocalTransformer(num_tokens=256, dim=256, depth=3, max_seq_len=1024, causal=True, local_attn_window_size=64)", "tokens", "self.net(tokens)"), {"tokens": ids(256, "batch", "sequence")}, {"sequence": Dim(max=1024)}, ("logits",)),
    ZooModel("perceiver-io", "perceiver-pytorch", module("from perceiver_pytorch import PerceiverIO\n", "PerceiverIO(dim=32, queries_dim=32, logits_dim=100, depth=3, num_latents=64, latent_dim=128)", "data, queries", "self.net(data, queries=queries)"),
             {"data": floats("batch", "length", 32), "queries": floats("batch", "questions", 32)}, {"length": Dim(max=512), "questions": Dim(max=64)}, ("logits",)),
    ZooModel("fair-esm2", "fair-esm", module("import esm\n", "esm.ESM2(num_layers=6, embed_dim=320, attention_heads=20, alphabet='ESM-1b')", "tokens", "(lambda output: (output['logits'], output['representations'][6]))(self.net(tokens, repr_layers=[6]))"), {"tokens": ids(30, "batch", "residues", low=4)}, {"residues": Dim(max=1000)}, ("logits", "representations")),
    ZooModel("vector-quantize", "vector-quantize-pytorch", module("from vector_quantize_pytorch import VectorQuantize\n", "VectorQuantize(dim=64, codebook_size=512)", "x", "self.net(x)[:2]"), {"x": floats("batch", "steps", 64)}, {"steps": Dim(max=200)}, ("quantized", "codes")),
    ZooModel("residual-fsq", "vector-quantize-pytorch", module("from vector_quantize_pytorch import FSQ\n", "FSQ([8, 5, 5, 5])", "x", "self.net(x)"), {"x": floats("batch", "steps", 4)}, {"steps": Dim(max=200)}, ("quantized", "codes")),
)  # fmt: skip

_VIT_PYTORCH = tuple(
    ZooModel(
        f"vit-pytorch-{name}", "vit-pytorch", function(f"from vit_pytorch.{file} import {cls}\n", f"{cls}({arguments})"),
        {"image": floats("batch", 3, size, size, range=(0, 1))}, {"batch": Dim(max=16)} if number % 3 == 1 else {}, ("logits",), entry="build",
    )
    for number, (name, file, cls, size, arguments) in enumerate((
        ("vit", "vit", "ViT", 128, "image_size=128, patch_size=16, num_classes=100, dim=256, depth=4, heads=8, mlp_dim=512"),
        ("simple", "simple_vit", "SimpleViT", 128, "image_size=128, patch_size=16, num_classes=100, dim=256, depth=4, heads=8, mlp_dim=512"),
        ("deep", "deepvit", "DeepViT", 128, "image_size=128, patch_size=16, num_classes=100, dim=256, depth=4, heads=8, mlp_dim=512"),
        ("cait", "cait", "CaiT", 128, "image_size=128, patch_size=16, num_classes=100, dim=256, depth=4, cls_depth=2, heads=8, mlp_dim=512"),
        ("cct", "cct", "CCT", 128, "img_size=(128, 128), embedding_dim=192, n_conv_layers=2, kernel_size=7, stride=2, padding=3, pooling_kernel_size=3, pooling_stride=2, pooling_padding=1, num_layers=4, num_heads=6, mlp_ratio=3.0, num_classes=100, positional_embedding='learnable'"),
        ("t2t", "t2t", "T2TViT", 128, "dim=256, image_size=128, depth=3, heads=8, mlp_dim=512, num_classes=100, t2t_layers=((7, 4), (3, 2), (3, 2))"),
        ("levit", "levit", "LeViT", 128, "image_size=128, num_classes=100, stages=3, dim=(128, 192, 256), depth=2, heads=(4, 6, 8), mlp_mult=2"),
        ("cvt", "cvt", "CvT", 128, "num_classes=100"),
        ("twins-svt", "twins_svt", "TwinsSVT", 224, "num_classes=100"),
        ("crossformer", "crossformer", "CrossFormer", 224, "num_classes=100"),
        ("regionvit", "regionvit", "RegionViT", 224, "dim=(64, 128, 256, 512), depth=(2, 2, 2, 2), window_size=7, num_classes=100"),
        ("nest", "nest", "NesT", 128, "image_size=128, patch_size=4, dim=64, heads=2, num_hierarchies=3, block_repeats=(2, 2, 2), num_classes=100"),
        ("mobile", "mobile_vit", "MobileViT", 256, "image_size=(256, 256), dims=[96, 120, 144], channels=[16, 32, 48, 48, 64, 64, 80, 80, 96, 96, 384], num_classes=100"),
        ("small-dataset", "vit_for_small_dataset", "ViT", 128, "image_size=128, patch_size=16, num_classes=100, dim=256, depth=4, heads=8, mlp_dim=512"),
        ("rvt", "rvt", "RvT", 128, "image_size=128, patch_size=16, num_classes=100, dim=256, depth=3, heads=8, mlp_dim=512"),
        ("sep", "sep_vit", "SepViT", 224, "num_classes=100, dim=32, dim_head=32, heads=(1, 2, 4), depth=(1, 2, 2), window_size=7"),
        ("xcit", "xcit", "XCiT", 128, "image_size=128, patch_size=16, num_classes=100, dim=256, depth=4, cls_depth=2, heads=8, mlp_dim=512"),
    ))
)  # fmt: skip

MODELS = (*_GRAPHS, *_TABLES, *_SERIES, *_ATTENTION, *_VIT_PYTORCH)
