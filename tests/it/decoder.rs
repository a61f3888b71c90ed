//! Hidden states of decoders: against transformers (fixtures/embed/README.md), whatever the layout, the batch and the threads.

use std::path::Path;

use crate::embed_golden::{agrees_with, cosine, fixtures, golden, lines, model_files, open};
use crate::support::Lake;
use bytes::Bytes;
use half::{bf16, f16};
use ndarray::Array2;
use pushpull::embed::{DistillOptions, ModelFiles, distill, load};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

const FAMILIES: [&str; 4] = ["tiny_llama", "tiny_mistral", "tiny_qwen2", "tiny_qwen3"];

fn files(family: &str) -> ModelFiles {
    model_files(&fixtures().join(family))
}

/// The files with one JSON file changed, or made.
fn with(files: &ModelFiles, path: &str, changes: Value) -> ModelFiles {
    let mut content: Value = files.get(path).map_or(json!({}), |bytes| serde_json::from_slice(bytes).unwrap());
    match changes {
        Value::Object(changes) => changes.into_iter().for_each(|(key, value)| content[key] = value),
        whole => content = whole,
    }
    let mut files = files.clone();
    files.insert(path.to_owned(), Bytes::from(serde_json::to_vec(&content).unwrap()));
    files
}

/// A tensor's name, numbers and shape.
type Named = (String, Vec<f32>, Vec<usize>);

/// Every tensor of a folder's checkpoint.
fn tensors(files: &ModelFiles) -> Vec<Named> {
    let mut out = Vec::new();
    for content in files.iter().filter(|(path, _)| path.ends_with(".safetensors")).map(|(_, content)| content) {
        for (name, view) in SafeTensors::deserialize(content).unwrap().tensors() {
            let halves = view.data().chunks_exact(2).map(|b| [b[0], b[1]]);
            let numbers = match view.dtype() {
                Dtype::BF16 => halves.map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
                Dtype::F16 => halves.map(|b| f16::from_le_bytes(b).to_f32()).collect(),
                other => panic!("{name} is {other:?}"),
            };
            out.push((name, numbers, view.shape().to_vec()));
        }
    }
    out
}

/// The files with these tensors, in f32, as the only checkpoint.
fn with_tensors(files: &ModelFiles, tensors: &[Named]) -> ModelFiles {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, numbers, _)| numbers.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views =
        tensors.iter().zip(&bytes).map(|((name, _, shape), bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let mut files: ModelFiles = files.clone().into_iter().filter(|(path, _)| !path.contains("safetensors")).collect();
    files.insert("model.safetensors".to_owned(), Bytes::from(safetensors::serialize(views, None).unwrap()));
    files
}

fn encode(files: &ModelFiles, texts: &[&str]) -> Array2<f32> {
    load("s3://models/x", files).unwrap().encode(texts).unwrap()
}

fn refused(files: &ModelFiles) -> String {
    load("s3://models/x", files).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn every_family_agrees_with_transformers() {
    for family in FAMILIES {
        let (encoder, golden) = (open(&fixtures().join(family)), golden("decoder_vectors.safetensors", family));
        agrees_with(&*encoder, family, &golden, 0.999_99);
        let lines = lines();
        let texts: Vec<&str> = lines.iter().map(String::as_str).collect();
        let rows = encoder.encode(&texts).unwrap();
        let furthest = rows.iter().zip(&golden).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max);
        println!("{family}: furthest number {furthest:e}");
        assert!(furthest < 1e-4, "{family}: a number differs by {furthest}");
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let lines = lines();
    // Long and short in turn, so that threads take up each other's work.
    let texts: Vec<&str> = lines.iter().rev().step_by(3).map(String::as_str).collect();
    for family in FAMILIES {
        let encoder = open(&fixtures().join(family));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| encoder.encode(&texts).unwrap())
        };
        let one = with(1);
        for threads in [2, 5] {
            assert!(with(threads) == one, "{family}: {threads} threads give other bits than one");
        }
    }
}

#[test]
fn one_file_or_several_with_or_without_the_prefix_in_halves_or_in_full() {
    let lines = lines();
    let texts: Vec<&str> = lines.iter().step_by(7).map(String::as_str).collect();
    let several = files("tiny_llama");
    assert!(several.contains_key("model-00002-of-00002.safetensors") && !several.contains_key("model.safetensors"));
    let expected = encode(&several, &texts);

    let mut all = tensors(&several);
    let whole = with_tensors(&several, &all);
    assert!(encode(&whole, &texts) == expected);
    // The decoder alone: no prefix, no head.
    all.retain(|(name, ..)| name != "lm_head.weight");
    all.iter_mut().for_each(|(name, ..)| *name = name.strip_prefix("model.").unwrap().to_owned());
    let bare = with_tensors(&several, &all);
    assert!(encode(&bare, &texts) == expected);

    let print = |files: &ModelFiles| load("x", files).unwrap().fingerprint().to_owned();
    let prints =
        [print(&several), print(&whole), print(&bare), print(&with(&several, "tokenizer_config.json", json!({"model_max_length": 9})))];
    assert!(prints.iter().enumerate().all(|(i, a)| prints[..i].iter().all(|b| a != b)), "{prints:?}");
    assert_eq!(print(&several), print(&with(&several, "README.md", json!("not read"))));
}

#[test]
fn a_long_text_is_cut_where_the_folder_says() {
    // Qwen2 adds no special token, so a text that begins with another text's first tokens is cut to the same tokens.
    let (head, tail) = ("The train to the harbour was late again", " and the old library by the river had closed");
    let texts =
        [head.to_owned() + &tail.repeat(3), head.to_owned() + tail + " today", tail.repeat(4), "Nobody".to_owned() + &tail.repeat(4)];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let same = |files: &ModelFiles| {
        let rows = encode(files, &texts);
        (rows.row(0) == rows.row(1), rows.row(2) == rows.row(3))
    };
    let qwen = files("tiny_qwen2");
    assert_eq!(same(&qwen), (false, false));
    let short = json!({"model_max_length": 8});
    assert_eq!(same(&with(&qwen, "tokenizer_config.json", short.clone())), (true, false));
    let left = with(&with(&qwen, "tokenizer_config.json", short), "tokenizer_config.json", json!({"truncation_side": "left"}));
    assert_eq!(same(&left), (false, true));
    for (path, changes) in [
        ("config.json", json!({"max_position_embeddings": 8})),
        ("config.json", json!({"use_sliding_window": true, "sliding_window": 8})),
        ("sentence_bert_config.json", json!({"max_seq_length": 8})),
    ] {
        assert_eq!(same(&with(&qwen, path, changes)), (true, false), "{path}");
    }
    // The token that Qwen3-Embedding puts after a text stays there: eight tokens of it are seven of the text.
    let qwen3 = files("tiny_qwen3");
    let eight = with(&qwen3, "tokenizer_config.json", json!({"model_max_length": 8}));
    assert_eq!(same(&eight), (true, false));
    assert!(refused(&with(&qwen3, "tokenizer_config.json", json!({"model_max_length": 1}))).contains("leaves no room"));
}

#[test]
fn pooling_is_what_modules_json_asks_for() {
    let lines = lines();
    let texts: Vec<&str> = lines.iter().take(12).map(String::as_str).collect();
    let qwen = files("tiny_qwen3");
    let last = encode(&qwen, &texts);
    let asks = |config: Value| {
        let mut files = qwen.clone();
        files.insert("1_Pooling/config.json".to_owned(), Bytes::from(config.to_string()));
        files
    };
    assert!(encode(&asks(json!({"pooling_mode": "lasttoken"})), &texts) == last);
    let mean = encode(&asks(json!({"pooling_mode_mean_tokens": true})), &texts);
    assert!(mean.rows().into_iter().zip(last.rows()).all(|(mean, last)| cosine(mean, last) < 0.999));
    // A folder without modules is the convention of decoders, the last token.
    let bare: ModelFiles = qwen.clone().into_iter().filter(|(path, _)| path != "modules.json").collect();
    assert!(encode(&bare, &texts) == last);

    let other = refused(&asks(json!({"pooling_mode_cls_token": true})));
    assert!(other.contains("[cls]") && other.contains("lasttoken and mean"), "{other}");
    let dense =
        json!([{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}, {"path": "2_Dense", "type": "a.Dense"}]);
    let dense = refused(&with(&qwen, "modules.json", dense));
    assert!(dense.contains("`Dense`") && dense.contains("Normalize"), "{dense}");
}

#[test]
fn folders_that_cannot_be_loaded_name_what_is_wrong() {
    let llama = files("tiny_llama");
    let without = |path: &str| llama.clone().into_iter().filter(|(name, _)| name != path).collect::<ModelFiles>();
    let tokenizer = refused(&without("tokenizer.json"));
    assert!(tokenizer.contains("tokenizer.json is missing") && tokenizer.contains("found config.json"), "{tokenizer}");
    assert!(refused(&without("model-00002-of-00002.safetensors")).contains("model-00002-of-00002.safetensors is missing"));
    let unknown = refused(&with(&llama, "config.json", json!({"model_type": "gemma", "hidden_act": "gelu"})));
    assert!(unknown.contains("`gemma`") && unknown.contains("llama, mistral, qwen2, qwen3"), "{unknown}");
    let yarn = refused(&with(&llama, "config.json", json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})));
    assert!(yarn.contains("s3://models/x: config.json has rotary scaling `yarn`"), "{yarn}");

    let name = "model.layers.1.self_attn.k_proj.weight";
    let mut all = tensors(&llama);
    let at = all.iter().position(|(each, ..)| each == name).unwrap();
    let missing = refused(&with_tensors(&llama, &[&all[..at], &all[at + 1..]].concat()));
    assert!(missing.contains(&format!("model.safetensors has no tensor `{name}`")), "{missing}");
    let index: Value = serde_json::from_slice(&llama["model.safetensors.index.json"]).unwrap();
    let mut map = index["weight_map"].clone();
    map.as_object_mut().unwrap().remove(name);
    let unlisted = refused(&with(&llama, "model.safetensors.index.json", json!({"weight_map": map})));
    assert!(unlisted.contains(&format!("lists no tensor `{name}`")), "{unlisted}");
    all[at].2 = vec![32, 16];
    let shape = refused(&with_tensors(&llama, &all));
    assert!(shape.contains(name) && shape.contains("[32, 16]") && shape.contains("[16, 32]"), "{shape}");
    // A Qwen2 has biases where a Llama has none.
    assert!(refused(&with(&llama, "config.json", json!({"model_type": "qwen2"}))).contains("self_attn.q_proj.bias"));

    let mut table = tensors(&llama);
    let embedding = table.iter_mut().find(|(name, ..)| name == "model.embed_tokens.weight").unwrap();
    embedding.1.truncate(300 * 32);
    embedding.2 = vec![300, 32];
    assert!(refused(&with_tensors(&llama, &table)).contains("the tokenizer has 342 tokens and the checkpoint 300"));
    // A number that is not finite is an error and no vector.
    let mut table = tensors(&llama);
    table.iter_mut().find(|(name, ..)| name == "model.norm.weight").unwrap().1[3] = f32::NAN;
    let broken = load("s3://models/x", &with_tensors(&llama, &table)).unwrap().encode(&["a"]).unwrap_err().to_string();
    assert!(broken.contains("not finite"), "{broken}");
    let table = distill("s3://models/x", &llama, &DistillOptions::default(), &mut |_, _| {}).unwrap_err().to_string();
    assert!(table.contains("is a decoder") && table.contains("BERT"), "{table}");
}

#[test]
fn a_job_with_a_decoder_weighs_the_same_whatever_the_threads() {
    let model = format!("embed.model={}", Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/embed/tiny_llama").display());
    let job = ["run", "job.toml", "--set", "corpus.url=corpus/part-0003.parquet", "--set", &model];
    // candle asks the environment how far to split a product.
    let lake = Lake::new().with_environment(&[("RAYON_NUM_THREADS", "1")]);
    let report = lake.json(&[&job[..], &["--threads", "1"]].concat(), 0);
    assert_eq!((&report["rows"], &report["shards"]["weighed"]), (&json!(76), &json!(1)));
    let one = lake.sidecars("output");
    let lake = lake.with_environment(&[("RAYON_NUM_THREADS", "3")]);
    lake.json(&[&job[..], &["--threads", "3", "--chunk-rows", "5", "--set", "output.url=other/"]].concat(), 0);
    assert!(!one.is_empty() && lake.sidecars("other") == one, "weights of a decoder depend on chunks or threads");
}
