//! Columns of one table that two pipelines write.

use std::sync::Arc;

use crate::config::Place;
use crate::db::app::{Misfit, Plan, TargetPlan, WriteKind};

/// Two pipelines that write one column of the same rows undo each other's words: a person has to know. Where both say which rows they are
/// for, and not the same, these are taken to be different ones.
pub(super) fn rivals(plans: &[Arc<Plan>]) -> Vec<Misfit> {
    let mut said = Vec::new();
    for (nth, one) in plans.iter().enumerate() {
        for other in plans[..nth].iter().filter(|other| meet(one, other)) {
            let known = written(other);
            let both = written(one).into_iter().filter(|(name, _, _)| known.iter().any(|(known, _, _)| known == name));
            said.extend(both.filter_map(|(name, keys, place)| {
                let merge = |keys: bool| keys && known.iter().any(|(known, keys, _)| *known == name && *keys);
                let message = format!(
                    "pipelines {} and {} both write column {name} of {}: whichever is done last is heard; give each a column of its own",
                    other.pipeline.name, one.pipeline.name, one.source_table.name
                );
                (!merge(keys)).then(|| Misfit::warning(place, message))
            }));
        }
    }
    said
}

fn meet(one: &Plan, other: &Plan) -> bool {
    let when = |plan: &Plan| plan.pipeline.source.when.as_ref().map(|sql| sql.text.trim().to_owned());
    let apart = matches!((when(one), when(other)), (Some(one), Some(other)) if one != other);
    one.source_table.oid == other.source_table.oid && !apart
}

/// The source's columns that a pipeline writes, whether only keys of them, and where it says so.
fn written(plan: &Plan) -> Vec<(&str, bool, &Place)> {
    let of_target = match &plan.target {
        TargetPlan::Row { columns, .. } => columns.as_slice(),
        TargetPlan::Chunks { .. } | TargetPlan::None => &[],
    };
    let of_status = plan.status.iter().flat_map(|status| &status.columns);
    let mut found: Vec<(&str, bool, &Place)> = of_target
        .iter()
        .chain(&plan.write)
        .chain(of_status)
        .map(|write| (write.column.name.as_str(), matches!(write.kind, WriteKind::Merge(_)), &write.place))
        .collect();
    if let (Some(status), Some(rule)) = (&plan.status, &plan.pipeline.status) {
        found.extend(status.column.as_ref().map(|column| (column.name.as_str(), false, &rule.place)));
    }
    found
}
