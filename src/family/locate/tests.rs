use std::borrow::Cow;
use std::path::PathBuf;

use super::*;
use crate::codec::Dtype;
use crate::family::decoder::{ExpertNames, Experts};
use crate::family::spec::{Carried, RoutingRule};
use crate::model::{Config, ModelError};

/// Headers without data.
struct Headers(Vec<TensorMeta>);

impl TensorSource for Headers {
    fn metas(&self) -> &[TensorMeta] {
        &self.0
    }
    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.0.iter().find(|meta| meta.name == name)
    }
    fn files(&self) -> &[PathBuf] {
        &[]
    }
    fn bytes(&self, _name: &str) -> Result<Cow<'_, [u8]>, ModelError> {
        Ok(Cow::Borrowed(&[]))
    }
    fn prefetch(&self, _name: &str) {}
    fn release(&self, _name: &str) {}
}

fn headers(tensors: &[(&str, &[usize])]) -> Arc<dyn TensorSource> {
    let meta = |&(name, shape): &(&str, &[usize])| TensorMeta {
        name: name.to_owned(),
        dtype: Dtype::BF16,
        shape: shape.to_vec(),
        bytes: 2 * shape.iter().product::<usize>() as u64,
        file: 0,
    };
    Arc::new(Headers(tensors.iter().map(meta).collect()))
}

fn mixture(prefix: &str, (count, intermediate, hidden): (usize, usize, usize)) -> MoeSpec {
    let experts = Experts {
        count,
        top_k: 1,
        intermediate,
        rule: RoutingRule::TopKSoftmax,
        scale: 1.0,
        shared: None,
        names: ExpertNames::MLP,
        dense_layers: Vec::new(),
        sparse_step: 1,
    };
    experts.mixture(prefix, hidden)
}

/// A model of one dense block, and what it carries.
fn spec(carried: Vec<Carried>) -> ModelSpec {
    let config = serde_json::json!({"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 10});
    let config = Config::from_value(std::path::Path::new("config.json"), config).unwrap();
    let mut spec = crate::family::of_config(&config).unwrap().spec(&config).unwrap();
    spec.carried = carried;
    spec
}

fn draft_head() -> Carried {
    Carried {
        name: "draft head",
        prefixes: vec!["mtp.".to_owned()],
        required: false,
        mixtures: vec![mixture("mtp.layers.0", (2, 6, 8))],
    }
}

const OPEN: Conventions<'static> = Conventions {
    aliases: &[Alias::Prefix("thinker.", ""), Alias::Part(".moe.", ".mlp.")],
    layouts: &[StackLayout::OutIn, StackLayout::InOut],
    expert_key: "num_experts",
};

fn located(tensors: &[(&str, &[usize])], carried: Vec<Carried>) -> Result<Storage, FamilyError> {
    locate(&headers(tensors), &spec(carried), &OPEN).map(|located| located.storage)
}

fn refusal(tensors: &[(&str, &[usize])], carried: Vec<Carried>) -> String {
    located(tensors, carried).unwrap_err().to_string()
}

#[test]
fn experts_of_a_carried_head_are_numbered_like_those_of_blocks() {
    let router: (&str, &[usize]) = ("thinker.mtp.layers.0.moe.gate.weight", &[2, 8]);
    let single = [
        router,
        ("mtp.layers.0.mlp.experts.0.gate_proj.weight", &[6, 8]),
        ("mtp.layers.0.mlp.experts.0.up_proj.weight", &[6, 8]),
        ("mtp.layers.0.mlp.experts.0.down_proj.weight", &[8, 6]),
        ("mtp.layers.0.mlp.experts.1.gate_proj.weight", &[6, 8]),
        ("mtp.layers.0.mlp.experts.1.up_proj.weight", &[6, 8]),
        ("mtp.layers.0.mlp.experts.1.down_proj.weight", &[8, 6]),
        ("mtp.norm.weight", &[8]),
    ];
    let mixture = MixtureId::Carried { part: 0, number: 0 };
    let storage = located(&single, vec![draft_head()]).unwrap();
    let axes: Vec<ExpertAxis> = storage.tensors().iter().map(|t| t.experts).collect();
    let one = |expert| ExpertAxis::One { mixture, expert };
    assert_eq!(axes, [ExpertAxis::Rows { mixture }, one(0), one(0), one(0), one(1), one(1), one(1), ExpertAxis::Apart]);
    assert!(storage.tensors().iter().all(|t| t.holding == Holding::Carried { part: 0 }));
    assert_eq!(storage.renumbered(single[5].0, 0), Some(single[2].0));

    let stacked: [(&str, &[usize]); 3] = [
        router,
        ("mtp.layers.0.mlp.experts.gate_up_proj", &[2, 8, 12]),
        ("mtp.layers.0.mlp.experts.down_proj", &[2, 6, 8]),
    ];
    let storage = located(&stacked, vec![draft_head()]).unwrap();
    assert!(storage.tensors().iter().all(|t| t.experts == ExpertAxis::Rows { mixture }));
    assert_eq!(storage.carried(0).count(), 3);

    assert!(refusal(&single[..4], vec![draft_head()]).contains("mtp.layers.0.mlp.experts.1.gate_proj.weight"));
    assert!(located(&[("other", &[1])], vec![draft_head()]).is_ok(), "a head that is not there is not missed");
}

#[test]
fn experts_of_a_carried_part_that_nobody_declared_are_not_passed_over() {
    let mut model = spec(vec![draft_head()]);
    model.blocks[0].ffn = crate::family::FfnSpec::Moe(mixture("model.layers.0", (2, 6, 8)));
    let stray = headers(&[("mtp.layers.1.mlp.experts.0.up_proj.weight", &[6, 8])]);
    model.carried[0].mixtures.clear();
    let error = locate(&stray, &model, &OPEN).err().unwrap().to_string();
    assert!(error.contains("mtp.layers.1.mlp.experts.0.up_proj.weight") && error.contains("draft head"), "{error}");
}

#[test]
fn what_files_and_config_disagree_about_is_named() {
    let tower = |required| Carried {
        name: "vision tower",
        prefixes: vec!["visual.".to_owned()],
        required,
        mixtures: Vec::new(),
    };
    let text = refusal(&[("visuals", &[1])], vec![tower(true)]);
    insta::assert_snapshot!(text, @"the config declares the vision tower, but no tensor of the files belongs to it");
    assert!(located(&[("visuals", &[1])], vec![tower(false)]).is_ok());
    assert!(located(&[("thinker.visual.x", &[1])], vec![tower(true)]).is_ok());

    let text = refusal(&[("a", &[1]), ("thinker.a", &[1])], Vec::new());
    insta::assert_snapshot!(text, @"tensors a and thinker.a both mean a");
    let text = refusal(&[("mtp.layers.0.mlp.gate.weight", &[3, 8])], vec![draft_head()]);
    insta::assert_snapshot!(text, @"config key num_experts says 2 experts, tensor mtp.layers.0.mlp.gate.weight is for 3");
    let stacks: [(&str, &[usize]); 2] =
        [("mtp.layers.0.mlp.experts.gate_up_proj", &[3, 8, 12]), ("mtp.layers.0.mlp.experts.down_proj", &[3, 6, 8])];
    let text = refusal(&stacks, vec![draft_head()]);
    insta::assert_snapshot!(text, @"config key num_experts says 2 experts, tensor mtp.layers.0.mlp.experts.gate_up_proj is for 3");
}

/// The layout found for two stacks of experts of an inner and a hidden width.
fn layout(inner: usize, hidden: usize, gate_up: [usize; 2], down: [usize; 2]) -> Result<StackLayout, String> {
    let moe = mixture("mtp.layers.0", (2, inner, hidden));
    let shapes = [gate_up, down].map(|[rows, columns]| [2, rows, columns]);
    let source = headers(&[
        ("mtp.layers.0.mlp.experts.gate_up_proj", &shapes[0]),
        ("mtp.layers.0.mlp.experts.down_proj", &shapes[1]),
    ]);
    let found = stacks::find(&moe, &|name| source.meta(name), OPEN.layouts);
    found.map(|stacks| stacks.unwrap().layout).map_err(|error| error.to_string())
}

#[test]
fn the_axis_order_follows_from_both_shapes_together() {
    assert_eq!(layout(6, 8, [12, 8], [8, 6]), Ok(StackLayout::OutIn));
    assert_eq!(layout(6, 8, [8, 12], [6, 8]), Ok(StackLayout::InOut));
    // 2I = H: the first stack could be either, the second tells.
    assert_eq!(layout(4, 8, [8, 8], [8, 4]), Ok(StackLayout::OutIn));
    assert_eq!(layout(4, 8, [8, 8], [4, 8]), Ok(StackLayout::InOut));
    // I = H: the other way round.
    assert_eq!(layout(8, 8, [16, 8], [8, 8]), Ok(StackLayout::OutIn));
    assert_eq!(layout(8, 8, [8, 16], [8, 8]), Ok(StackLayout::InOut));
    // Each fits a layout, but not the same one.
    let text = layout(6, 8, [12, 8], [6, 8]).unwrap_err();
    assert!(text.contains("gate_up_proj [2, 12, 8]") && text.contains("down_proj [2, 6, 8]"), "{text}");
    let one = headers(&[("mtp.layers.0.mlp.experts.gate_up_proj", &[2, 12, 8])]);
    let error = stacks::find(&mixture("mtp.layers.0", (2, 6, 8)), &|name| one.meta(name), OPEN.layouts).err().unwrap();
    assert!(error.to_string().contains("mtp.layers.0.mlp.experts.down_proj"), "{error}");
}
