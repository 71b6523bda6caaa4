//! A pipeline resolved against the database: which columns and types it really reads and writes.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use crate::config::{ChunkFact, Config, Model, Name, Pipeline, PipelineKind, Place};
use crate::domain::SourceKey;

use super::assign::{self, ColumnWrite, WriteKind};
use super::catalog::{self, Column, Table};
use super::check::{Misfit, NO_PGVECTOR, Purpose};
use super::create::{self, Creation};
use super::effects::{self, EffectPlan, Types};
use super::fit;
use super::fragments;
use super::keys;
use super::limits::{self, LimitPlan};
use super::own_writes;
use super::parents::{self, ParentPlan};
use super::queue::{self, QueuePlan};
use super::rights;
use super::shape::{Shape, row_names};
use super::steady::{self, Steady};
use super::vector::{SparseKind, VectorKind, VectorType};
use super::{asked, words};

/// A pipeline that fits its database.
#[derive(Debug, Clone)]
pub struct Plan {
    pub pipeline: Pipeline,
    pub model: Model,
    pub provider: String,
    pub generation: String,
    /// The source table, quoted.
    pub source: String,
    pub source_table: Table,
    pub key: Vec<Column>,
    /// The row names the pipeline uses; a loaded row has a value for each, in this order.
    pub names: Vec<String>,
    pub vector: VectorType,
    pub target: TargetPlan,
    pub write: Vec<ColumnWrite>,
    pub status: Option<StatusPlan>,
    /// The rows that new chunks refer to, beside the source row.
    pub parents: Vec<ParentPlan>,
    pub effects: Vec<EffectPlan>,
    pub queue: Option<QueuePlan>,
    /// What makes the target, where it is ours to make and not there yet.
    pub create: Option<Creation>,
    pub limit: Option<LimitPlan>,
    /// Row names that effects use, read under the commit's lock.
    pub locked_names: Vec<String>,
    /// Row names that a job keeps, for effects that run when its row may be gone.
    pub kept_names: BTreeSet<String>,
    /// Joins the configuration's `values` to `source`.
    pub(super) lateral: String,
    /// Text expressions of `names`.
    pub(super) expressions: Vec<String>,
    pub(super) when: String,
    pub(super) needs: Option<String>,
    pub(super) tenant: String,
    pub(super) fingerprint: String,
    /// A digest of all that is read of a row to see whether it belongs to the set, and whether it changed.
    pub watched: String,
    pub steady: Steady,
}

/// Where vectors go.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one for each pipeline, for the life of the process")]
pub enum TargetPlan {
    /// A table of chunks.
    Chunks {
        /// The table, quoted.
        table: String,
        parent: Vec<ColumnWrite>,
        /// The version column and this pipeline's word.
        version: Option<(Column, String)>,
        columns: Vec<ColumnWrite>,
        vector: Column,
        index: Column,
        /// The column of the stored text.
        text: Option<Column>,
        /// A unique key holds the chunk index: moving chunks need a detour.
        index_is_unique: bool,
    },
    /// Columns of the source row.
    Row { columns: Vec<ColumnWrite>, vector: Column },
    /// Nowhere: the pipeline makes none.
    None,
}

impl TargetPlan {
    pub fn vector(&self) -> Option<&Column> {
        match self {
            Self::Chunks { vector, .. } | Self::Row { vector, .. } => Some(vector),
            Self::None => None,
        }
    }

    /// The column for weights of tokens, where there is one.
    pub fn sparse(&self) -> Option<(&Column, SparseKind)> {
        self.columns().iter().find_map(|write| match write.kind {
            WriteKind::Sparse(kind) => Some((&write.column, kind)),
            _ => None,
        })
    }

    pub fn columns(&self) -> &[ColumnWrite] {
        match self {
            Self::Chunks { columns, .. } | Self::Row { columns, .. } => columns,
            Self::None => &[],
        }
    }
}

/// The mirrored status.
#[derive(Debug, Clone)]
pub struct StatusPlan {
    pub column: Option<Column>,
    pub columns: Vec<ColumnWrite>,
}

impl Plan {
    /// Parent values of a chunk, from the key alone.
    pub fn parent_of(&self, key: &SourceKey) -> Vec<String> {
        let TargetPlan::Chunks { parent, .. } = &self.target else { return Vec::new() };
        parent
            .iter()
            .map(|column| match &column.kind {
                WriteKind::Plain(template) => template.render(|name| self.key_value(key, name)),
                WriteKind::Vector | WriteKind::Sparse(_) | WriteKind::Merge(_) => String::new(),
            })
            .collect()
    }

    fn key_value(&self, key: &SourceKey, name: &Name) -> Option<String> {
        let Name::Row(name) = name else { return None };
        let nth = self.key.iter().position(|column| &column.name == name)?;
        key.0.get(nth).cloned()
    }

    /// The version of `row`, where the same version has the same content.
    pub(super) fn version(&self, row: &str) -> String {
        if self.steady.versioned { format!("{row}.xmin::text") } else { "null::text".to_owned() }
    }

    /// An SQL condition: what `row` holds may stay, its weights of tokens included.
    pub(super) fn valid(&self, row: &str) -> String {
        let Some(vector) = self.target.vector() else { return "true".to_owned() };
        let vector = format!("{row}.{}", vector.sql());
        let valid = self.vector.valid(&vector, self.model.dimensions);
        match self.target.sparse() {
            Some((column, kind)) => format!("({valid} and {})", kind.valid(&format!("{row}.{}", column.sql()))),
            _ => valid,
        }
    }

    /// `source."a" = asked.gm_k1::type and …`
    pub(super) fn key_match(&self, row: &str) -> String {
        let parts: Vec<String> = self
            .key
            .iter()
            .enumerate()
            .map(|(nth, column)| format!("{row}.{} = asked.gm_k{}::{}", column.sql(), nth + 1, column.type_sql()))
            .collect();
        parts.join(" and ")
    }

    /// `source."a" = (key->>0)::type and …`
    pub(super) fn key_of_json(&self, row: &str, key: &str) -> String {
        let parts: Vec<String> = self
            .key
            .iter()
            .enumerate()
            .map(|(nth, column)| format!("{row}.{} = ({key}->>{nth})::{}", column.sql(), column.type_sql()))
            .collect();
        parts.join(" and ")
    }

    /// `jsonb_build_array(source."a"::text, …)`
    pub(super) fn key_json(&self, row: &str) -> String {
        let parts: Vec<String> = self.key.iter().map(|column| format!("{row}.{}::text", column.sql())).collect();
        format!("jsonb_build_array({})", parts.join(", "))
    }

    /// `relation as source`, and the configuration's `values`.
    pub(super) fn relation(&self, relation: &str) -> String {
        format!("{relation} as source{}", self.lateral)
    }

    /// The asked keys, joined to their source rows.
    pub(super) fn asked_rows(&self) -> String {
        format!(
            "{} join {} as source on {}{}",
            asked(self.key.len()),
            self.source,
            self.key_match("source"),
            self.lateral
        )
    }

    /// `source."a", source."b"`
    pub(super) fn key_list(&self, row: &str) -> String {
        self.key.iter().map(|column| format!("{row}.{}", column.sql())).collect::<Vec<_>>().join(", ")
    }
}

/// Resolves a pipeline. All misfits are named together; warnings come with the plan.
///
/// # Errors
/// The outer error: the database is away. The inner one: what does not fit.
pub async fn resolve(
    connection: &mut PgConnection,
    config: &Config,
    pipeline: &Pipeline,
    purpose: Purpose,
) -> sqlx::Result<Result<(Plan, Vec<Misfit>), Vec<Misfit>>> {
    let missing = match &pipeline.target.table {
        Some(name) if pipeline.target.create => catalog::table(connection, name).await?.is_none(),
        Some(_) | None => false,
    };
    let source = catalog::table(connection, &pipeline.source.table).await?;
    let (true, Some(source)) = (missing, source) else {
        return resolve_now(connection, config, pipeline, purpose).await;
    };

    // Everything is held against the table that is going to be, which is then taken back.
    let mut misfits = Vec::new();
    let creation = create::creation(connection, config, pipeline, &source, &mut misfits).await?;
    if !misfits.is_empty() {
        return Ok(Err(misfits));
    }
    let mut trial = sqlx::Connection::begin(connection).await?;
    let resolved = match create::try_out(&mut trial, pipeline, &creation, purpose).await? {
        Some(misfit) => Err(vec![misfit]),
        None => resolve_now(&mut trial, config, pipeline, purpose).await?,
    };
    trial.rollback().await?;
    Ok(resolved.map(|(plan, warnings)| (Plan { create: Some(creation), ..plan }, warnings)))
}

async fn resolve_now(
    connection: &mut PgConnection,
    config: &Config,
    pipeline: &Pipeline,
    purpose: Purpose,
) -> sqlx::Result<Result<(Plan, Vec<Misfit>), Vec<Misfit>>> {
    let mut misfits = Vec::new();
    let source = &pipeline.source;
    let Some(table) = catalog::table(connection, &source.table).await? else {
        return Ok(Err(vec![missing_table(&source.place, &source.table)]));
    };
    let target_table = match &pipeline.target.table {
        None => None,
        Some(name) => match catalog::table(connection, name).await? {
            Some(table) => Some(table),
            None => return Ok(Err(vec![missing_table(&pipeline.target.place, name)])),
        },
    };
    let schema = catalog::vector_schema(connection).await?;
    let schemas = [Some(&table), target_table.as_ref()].into_iter().flatten().map(|table| table.name.schema.clone());
    let schemas: Vec<String> = schemas.chain(schema.clone()).collect();
    let role = catalog::role(connection, &schemas).await?;
    rights::check(&role, &table, target_table.as_ref(), pipeline, &mut misfits);
    if source.changed_at.is_none() && source.reopen_on_change {
        misfits.push(Misfit::warning(
            &source.place,
            "changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`",
        ));
    }
    let key = keys::resolve(connection, &table, pipeline, &mut misfits).await?;
    let names = row_names(pipeline, &table, &mut misfits);
    let shape = Shape::new(pipeline, &names);
    let write = assign::resolve(&table, &pipeline.write, &mut misfits);
    let status = pipeline.status.as_ref().map(|status| status_plan(&table, status, &mut misfits));
    if let (Some(rule), Some(column)) = (&pipeline.status, status.as_ref().and_then(|status| status.column.as_ref())) {
        words::fit(connection, &table, &rule.place, &rule.words, column, &mut misfits).await?;
    }
    let target = target_plan(connection, &table, target_table.as_ref(), pipeline, &mut misfits).await?;
    let Some(target) = target else { return Ok(Err(misfits)) };
    let vector = match target.vector() {
        Some(column) => vector_type(column, schema, &pipeline.target.place, &mut misfits),
        None => Some(VectorType::none()),
    };
    let model = fitting_model(config, pipeline, target.vector(), &mut misfits);
    let (Some(vector), Some(model)) = (vector, model) else { return Ok(Err(misfits)) };
    let provider_kind = config.providers.get(&model.provider);
    let types = Types::read(connection, pipeline, &table).await?;
    let effects = effects::resolve(connection, pipeline, &table, &types, &mut misfits).await?;
    let limit = limits::of_pipeline(connection, config, pipeline, &types, &mut misfits).await?;
    let queue = queue::resolve(connection, pipeline, &table, &mut misfits).await?;
    let parents = parents::resolve(
        connection,
        &role.0,
        &table,
        target_table.as_ref(),
        &target,
        &pipeline.target.place,
        &mut misfits,
    )
    .await?;
    let effect_names = effects::row_names(&effects);
    let plan = Plan {
        generation: provider_kind.map(|provider| pipeline.generation(&model, provider)).unwrap_or_default(),
        provider: model.provider.clone(),
        model,
        source: table.sql(),
        key,
        names,
        vector,
        target,
        write,
        status,
        parents,
        effects,
        queue,
        create: None,
        limit,
        locked_names: effect_names.locked,
        kept_names: effect_names.kept,
        lateral: shape.lateral,
        expressions: shape.expressions,
        when: shape.when,
        needs: shape.needs,
        tenant: shape.tenant,
        watched: shape.watched,
        fingerprint: shape.fingerprint,
        steady: Steady::default(),
        pipeline: pipeline.clone(),
        source_table: table,
    };
    rights::check_columns(&role.0, &plan, &mut misfits);
    rights::check_sequences(connection, &role.0, &plan, target_table.as_ref(), &mut misfits).await?;
    try_out(connection, &plan, target_table.as_ref(), &types, purpose, &mut misfits).await?;
    if misfits.iter().any(|misfit| !misfit.warning) {
        return Ok(Err(misfits));
    }
    let steady = steady::of(connection, &plan, target_table.as_ref()).await?;
    Ok(Ok((Plan { steady, ..plan }, misfits)))
}

/// Lets Postgres read what is made of the configuration, where nothing is known to be wrong with it.
async fn try_out(
    connection: &mut PgConnection,
    plan: &Plan,
    target: Option<&Table>,
    types: &Types,
    purpose: Purpose,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<()> {
    // A right that is lacking for work is no matter to who only writes statements.
    let matters = |misfit: &Misfit| purpose == Purpose::Work || !misfit.of_role;
    misfits.retain(matters);
    if misfits.iter().all(|misfit| misfit.warning) {
        fragments::try_out(connection, plan, misfits).await?;
        misfits.retain(matters);
        fit::check(connection, plan, target, types, misfits).await?;
    }
    if misfits.iter().all(|misfit| misfit.warning) {
        own_writes::refuse(connection, plan, misfits).await?;
    }
    Ok(())
}

fn missing_table(place: &Place, name: &crate::config::TableName) -> Misfit {
    Misfit::new(place, format!("there is no table {name}"))
}

pub(super) fn missing_column(place: &Place, table: &Table, name: &str) -> Misfit {
    Misfit::new(place, format!("table {} has no column {name}; it has {}", table.name, table.column_names()))
}

fn status_plan(table: &Table, status: &crate::config::Status, misfits: &mut Vec<Misfit>) -> StatusPlan {
    let column = status.column.candidates.iter().find_map(|candidate| table.column(&candidate.column)).cloned();
    if column.is_none() && !status.column.optional {
        misfits.push(missing_column(&status.place, table, status.column.first()));
    }
    StatusPlan { column, columns: assign::resolve(table, &status.columns, misfits) }
}

async fn target_plan(
    connection: &mut PgConnection,
    source: &Table,
    target: Option<&Table>,
    pipeline: &Pipeline,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<Option<TargetPlan>> {
    let rule = &pipeline.target;
    if pipeline.kind == PipelineKind::Transcribe {
        return Ok(Some(TargetPlan::None));
    }
    let Some(table) = target else {
        let columns = assign::resolve(source, &rule.columns, misfits);
        let vector = vector_column(&columns, &rule.place, misfits);
        return Ok(vector.map(|vector| TargetPlan::Row { columns, vector }));
    };
    let parent = assign::resolve(table, &rule.parent, misfits);
    for column in &parent {
        let from_key =
            column.names().iter().all(|name| matches!(name, Name::Row(name) if pipeline.source.key.contains(name)));
        if !from_key {
            misfits.push(Misfit::new(
                &column.place,
                "target.parent may use key columns only: chunks must be found when the row is gone",
            ));
        }
    }
    let version = match &rule.version {
        None => None,
        Some((name, word)) => {
            if let Some(column) = table.column(name) {
                Some((column.clone(), word.clone()))
            } else {
                misfits.push(missing_column(&rule.place, table, name));
                None
            }
        }
    };
    let columns = assign::resolve(table, &rule.columns, misfits);
    let vector = vector_column(&columns, &rule.place, misfits);
    let of =
        |fact: ChunkFact| columns.iter().find(|column| column.uses_chunk(fact)).map(|column| column.column.clone());
    let index = of(ChunkFact::Index);
    if index.is_none() {
        misfits.push(Misfit::new(
            &rule.place,
            "target.columns must map {chunk.index} to a column: chunks are told apart by it",
        ));
    }
    let text = of(ChunkFact::Text);
    let (Some(vector), Some(index)) = (vector, index) else { return Ok(None) };
    fit::unwritten(table, &parent, version.as_ref(), &columns, &rule.place, misfits);
    let unique = catalog::unique_keys(connection, table).await?;
    let index_is_unique = unique.iter().any(|key| key.columns.contains(&index.name));
    let version_column = version.as_ref().map(|(column, _)| column);
    fit::unique(table, &unique, &parent, version_column, &columns, (pipeline.chunks.whole, &rule.place), misfits);
    Ok(Some(TargetPlan::Chunks { table: table.sql(), parent, version, columns, vector, index, text, index_is_unique }))
}

fn vector_column(columns: &[ColumnWrite], place: &Place, misfits: &mut Vec<Misfit>) -> Option<Column> {
    let vector = columns.iter().find(|column| column.kind == WriteKind::Vector).map(|column| column.column.clone());
    if vector.is_none() {
        misfits.push(Misfit::new(place, "target.columns must map {chunk.vector} to a column that exists"));
    }
    vector
}

fn vector_type(
    column: &Column,
    schema: Option<String>,
    place: &Place,
    misfits: &mut Vec<Misfit>,
) -> Option<VectorType> {
    let Some(schema) = schema else {
        misfits.push(Misfit::new(place, NO_PGVECTOR).fix("create extension vector;"));
        return None;
    };
    let kind = match column.type_name.as_str() {
        "vector" => VectorKind::Vector,
        "halfvec" => VectorKind::HalfVector,
        other => {
            misfits.push(Misfit::new(
                place,
                format!("column {} is {other}; vectors go into vector or halfvec", column.name),
            ));
            return None;
        }
    };
    Some(VectorType { kind, schema, oid: column.type_oid, array_oid: column.array_oid })
}

/// The first of the pipeline's models whose dimensions fit the column; where there is none, the first.
fn fitting_model(
    config: &Config,
    pipeline: &Pipeline,
    column: Option<&Column>,
    misfits: &mut Vec<Misfit>,
) -> Option<Model> {
    let models: Vec<&Model> = pipeline.models.iter().filter_map(|label| config.models.get(label)).collect();
    let Some(column) = column else { return models.first().copied().cloned() };
    let fits = |model: &&&Model| column.modifier < 0 || usize::try_from(column.modifier) == Ok(model.dimensions);
    let found = models.iter().find(fits);
    if found.is_none() {
        let offered: Vec<String> =
            models.iter().map(|model| format!("{} has {}", model.label, model.dimensions)).collect();
        misfits.push(Misfit::new(
            &pipeline.target.place,
            format!("column {} holds {} dimensions; {}", column.name, column.modifier, offered.join(", ")),
        ));
    }
    found.map(|model| (*model).clone())
}
