//! Our vectors against those of the published implementations (fixtures/embed/README.md says which).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::candle_bert::CandleBert;
use crate::support::needs;
use bytes::Bytes;
use half::f16;
use ndarray::{Array2, ArrayView1};
use pushpull::embed::{DistillOptions, Encoder, ModelFiles, builtin, distill, load, needed_file};
use safetensors::{Dtype, SafeTensors};

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/embed")
}

/// The files of a folder that the loader asks for.
pub(crate) fn model_files(folder: &Path) -> ModelFiles {
    fn walk(root: &Path, folder: &Path, files: &mut ModelFiles) {
        for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, files);
                continue;
            }
            let parts: Vec<_> = path.strip_prefix(root).unwrap().iter().map(|p| p.to_str().unwrap()).collect();
            let name = parts.join("/");
            if needed_file(&name) {
                files.insert(name, Bytes::from(std::fs::read(&path).unwrap()));
            }
        }
    }
    let mut files = ModelFiles::new();
    walk(folder, folder, &mut files);
    files
}

pub(crate) fn open(folder: &Path) -> Arc<dyn Encoder> {
    load(&folder.display().to_string(), &model_files(folder)).unwrap()
}

pub(crate) fn lines() -> Vec<String> {
    serde_json::from_slice(&std::fs::read(fixtures().join("texts.json")).unwrap()).unwrap()
}

pub(crate) fn golden(file: &str, name: &str) -> Array2<f32> {
    let bytes = std::fs::read(fixtures().join(file)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let numbers = match tensor.dtype() {
        Dtype::F16 => tensor.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::F32 => tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        other => panic!("{name} is {other:?}"),
    };
    Array2::from_shape_vec((tensor.shape()[0], tensor.shape()[1]), numbers).unwrap()
}

pub(crate) fn cosine(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    let dot = |x: ArrayView1<'_, f32>, y: ArrayView1<'_, f32>| x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// [`agrees_with`] the rows of this name in `vectors.safetensors`.
fn agrees(encoder: &dyn Encoder, name: &str, least: f64) {
    agrees_with(encoder, name, &golden("vectors.safetensors", name), least);
}

/// Every row against its golden one; zero rows are zero on both sides; a batch is its rows one by one, bit for bit.
pub(crate) fn agrees_with(encoder: &dyn Encoder, name: &str, golden: &Array2<f32>, least: f64) {
    let lines = lines();
    let texts: Vec<&str> = lines.iter().map(String::as_str).collect();
    let rows = encoder.encode(&texts).unwrap();
    assert_eq!(rows.dim(), golden.dim());
    for (i, (row, expected)) in rows.rows().into_iter().zip(golden.rows()).enumerate() {
        let zero = |r: ArrayView1<'_, f32>| r.iter().all(|&x| x == 0.0);
        assert_eq!(zero(row), zero(expected), "{name}, text {i}: {:?}", texts[i]);
        if !zero(row) {
            let got = cosine(row, expected);
            assert!(got > least, "{name}, text {i} {:?}: cosine {got}", texts[i]);
            assert!((row.dot(&row) - 1.0).abs() < 1e-5, "{name}, text {i} is not of unit length");
        }
    }
    for i in (0..texts.len()).step_by(3) {
        let alone = encoder.encode(&[texts[i]]).unwrap();
        assert_eq!(alone.row(0), rows.row(i), "{name}, text {i}: a batch differs from its row");
    }
    let reversed: Vec<&str> = texts.iter().rev().copied().collect();
    let back = encoder.encode(&reversed).unwrap();
    assert!(back.rows().into_iter().rev().eq(rows.rows()), "{name}: the order of a batch changes its rows");
}

#[test]
fn the_builtin_table_agrees_with_numpy_and_model2vec() {
    agrees(&*builtin().unwrap(), "builtin", 0.999_99);
}

#[test]
fn the_builtin_table_is_the_folder_beside_the_source() {
    let folder = open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/embed/builtin"));
    let shipped = builtin().unwrap();
    assert_eq!(folder.fingerprint(), shipped.fingerprint());
    assert_eq!(shipped.dims(), 256);
    assert_eq!(shipped.fingerprint().len(), 64);
}

#[test]
fn the_builtin_table_reads_whole_texts() {
    let long = "bread ".repeat(5000);
    let (same, more) = (format!("{long}bread"), format!("{long}{}", "violin ".repeat(5000)));
    let rows = builtin().unwrap().encode(&["bread", &same, &more]).unwrap();
    assert!(cosine(rows.row(0), rows.row(1)) > 0.999_99);
    assert!(cosine(rows.row(0), rows.row(2)) < 0.9);
}

#[test]
fn a_static_table_with_every_optional_part_agrees_with_model2vec() {
    // model2vec sums f16 rows times f64 factors in f64 and rounds to f16.
    agrees(&*open(&fixtures().join("tiny_static")), "tiny_static", 0.999_99);
}

#[test]
fn small_transformers_of_each_family_agree_with_flax() {
    for family in ["tiny_bert", "tiny_roberta", "tiny_distilbert"] {
        agrees(&*open(&fixtures().join(family)), family, 0.999_99);
    }
}

/// Cosine of every text that has a token, against candle's BERT.
fn agrees_with_candle(folder: &Path) {
    let lines = lines();
    let texts: Vec<&str> = lines.iter().map(String::as_str).collect();
    let ours = open(folder).encode(&texts).unwrap();
    let candle = CandleBert::load(folder).encode(&texts);
    for ((text, ours), candle) in texts.iter().zip(ours.rows()).zip(&candle) {
        if ours.iter().any(|x| *x != 0.0) {
            let cosine = cosine(ours, ArrayView1::from(candle.as_slice()));
            assert!(cosine > 0.9999, "{text:?}: {cosine}");
        }
    }
}

#[test]
fn transformers_agree_with_candle() {
    agrees_with_candle(&fixtures().join("tiny_bert"));
    if let Some(folder) = needs("PUSHPULL_TEST_MINILM", "all-MiniLM-L6-v2 against candle") {
        agrees_with_candle(Path::new(&folder));
    }
}

#[test]
fn minilm_agrees_with_flax() {
    let Some(folder) = needs("PUSHPULL_TEST_MINILM", "all-MiniLM-L6-v2 against transformers") else { return };
    agrees(&*open(Path::new(&folder)), "minilm", 0.999_99);
}

#[test]
fn distilling_gives_a_folder_that_loads_and_the_same_bytes_twice() {
    let files = model_files(&fixtures().join("tiny_bert"));
    let options = DistillOptions::default().with_dims(8).with_lexical_dims(70);
    let mut seen = Vec::new();
    let table = distill("tiny", &files, &options, &mut |done, total| seen.push((done, total))).unwrap();
    assert_eq!(seen.first().map(|s| s.0), Some(0));
    assert!(seen.last().is_some_and(|(done, total)| done == total && *total > 100));
    assert_eq!(table.keys().map(String::as_str).collect::<Vec<_>>(), ["config.json", "model.safetensors", "tokenizer.json"]);

    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let again = one.install(|| distill("tiny", &files, &options, &mut |_, _| {}).unwrap());
    assert!(table == again, "two runs differ");

    let small: ModelFiles = table.into_iter().map(|(path, content)| (path, Bytes::from(content))).collect();
    let encoder = load("small", &small).unwrap();
    assert_eq!(encoder.dims(), 8 + 70);
    let rows = encoder.encode(&["the train was late", "the train was late", ""]).unwrap();
    assert_eq!(rows.row(0), rows.row(1));
    assert!(rows.row(2).iter().all(|&x| x == 0.0));
    assert!(distill("small", &small, &options, &mut |_, _| {}).is_err(), "a table cannot be distilled again");
    let alone = distill("tiny", &files, &options.clone().with_lexical_dims(0), &mut |_, _| {}).unwrap();
    let alone: ModelFiles = alone.into_iter().map(|(path, content)| (path, Bytes::from(content))).collect();
    let alone = load("alone", &alone).unwrap();
    assert_eq!(alone.dims(), 8);
    // The lexical part takes its share and leaves the direction of the rest.
    let meaning = alone.encode(&["the train was late"]).unwrap();
    let scaled: Vec<f32> = meaning.iter().map(|x| x * 0.75f32.sqrt()).collect();
    assert!(rows.row(0).iter().zip(&scaled).all(|(ours, expected)| (ours - expected).abs() < 1e-6), "{rows} {scaled:?}");
    assert!(distill("tiny", &files, &options.clone().with_lexical_dims(5000), &mut |_, _| {}).is_err());
    for dims in [0, 17] {
        assert!(distill("tiny", &files, &DistillOptions::default().with_dims(dims), &mut |_, _| {}).is_err());
    }
}

#[test]
fn folders_that_cannot_be_loaded_say_what_was_found() {
    let whole: BTreeMap<_, _> = model_files(&fixtures().join("tiny_distilbert"));
    let message = |files: &ModelFiles| load("s3://models/x", files).map(|_| ()).unwrap_err().to_string();
    assert!(message(&ModelFiles::new()).contains("the folder is empty"));

    let with = |path: &str, content: &str| {
        let mut files = whole.clone();
        files.insert(path.to_owned(), Bytes::from(content.to_owned()));
        files
    };
    let mut files = whole.clone();
    files.remove("model.safetensors");
    assert!(message(&files).contains("model.safetensors is missing"));
    assert!(message(&with("config.json", r#"{"model_type": "mpnet"}"#)).contains("config.json"));
    let config = String::from_utf8(whole["config.json"].to_vec()).unwrap();
    let other = message(&with("config.json", &config.replace("distilbert", "mpnet")));
    assert!(other.contains("`mpnet`") && other.contains("supported are bert"), "{other}");
    let pooling = message(&with("1_Pooling/config.json", r#"{"pooling_mode_lasttoken": true}"#));
    assert!(pooling.contains("lasttoken") && pooling.contains("mean, cls and max"), "{pooling}");
    let modules = message(&with("modules.json", r#"[{"path": "", "type": "sentence_transformers.models.CLIPModel"}]"#));
    assert!(modules.contains("CLIPModel"), "{modules}");
    assert!(message(&with("tokenizer.json", "{}")).contains("tokenizer.json"));
    assert!(message(&with("model.safetensors", "no")).contains("model.safetensors"));
}

#[cfg(not(feature = "decoder"))]
#[test]
fn a_decoder_needs_the_feature_of_its_name() {
    let error = load("s3://models/x", &model_files(&fixtures().join("tiny_llama"))).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("feature `decoder`"), "{error}");
}

#[test]
fn only_what_a_loader_reads_is_needed() {
    for path in ["modules.json", "config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json", "2_Dense/model.safetensors"]
    {
        assert!(needed_file(path), "{path}");
    }
    for path in ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-2-of-2.safetensors", "tokenizer_config.json"] {
        assert!(needed_file(path), "{path}");
    }
    for path in ["consolidated.safetensors", "model-of-2.safetensors", "model-a-of-b.safetensors", "model-00001-of-00002.bin"] {
        assert!(!needed_file(path), "{path}");
    }
    for path in
        ["0_StaticEmbedding/tokenizer.json", "sentence_bert_config.json", "config_sentence_transformers.json", "0_Transformer/config.json"]
    {
        assert!(needed_file(path), "{path}");
    }
    for path in
        ["onnx/model.onnx", "openvino/config.json", "pytorch_model.bin", "README.md", "a/1_Pooling/config.json", "tf_model.h5", "vocab.txt"]
    {
        assert!(!needed_file(path), "{path}");
    }
}
