//! Vectors as bound values: pgvector's binary form under the type's own number, so that its schema does not matter.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, Postgres};
use sqlx::{Encode, Type};

use crate::domain::Sparse;

/// How a vector column stores its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VectorKind {
    Vector,
    HalfVector,
}

/// The type of a vector column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VectorType {
    pub kind: VectorKind,
    pub schema: String,
    pub oid: u32,
    pub array_oid: u32,
}

impl VectorType {
    /// Of a pipeline that makes no vectors: nobody asks for it.
    pub fn none() -> Self {
        Self { kind: VectorKind::Vector, schema: String::new(), oid: 0, array_oid: 0 }
    }

    /// An SQL condition: `expression` is a vector of that many dimensions and not all zeros. pgvector itself refuses values that
    /// are not finite.
    pub fn valid(&self, expression: &str, dimensions: usize) -> String {
        let schema = super::quote(&self.schema);
        let (dims, norm) = match self.kind {
            VectorKind::Vector => ("vector_dims", "vector_norm"),
            VectorKind::HalfVector => ("vector_dims", "l2_norm"),
        };
        format!(
            "({expression} is not null and {schema}.{dims}({expression}) = {dimensions} and {schema}.{norm}({expression}) > 0)"
        )
    }
}

/// How a column stores weights by token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SparseKind {
    /// `{"<token>": weight}`, as the model's own tools write it.
    Object,
    /// pgvector's `sparsevec` of so many dimensions.
    SparseVector { dimensions: usize },
}

impl SparseKind {
    /// As text, to be cast to the column's type.
    pub fn text(self, sparse: &Sparse) -> String {
        let joined = |pairs: Vec<String>| pairs.join(",");
        match self {
            Self::Object => {
                let pairs = sparse.iter().map(|(token, weight)| format!("\"{token}\":{weight}"));
                format!("{{{}}}", joined(pairs.collect()))
            }
            // Tokens count from 0, its dimensions from 1.
            Self::SparseVector { dimensions } => {
                let pairs = sparse.iter().map(|(token, weight)| format!("{}:{weight}", u64::from(token) + 1));
                format!("{{{}}}/{dimensions}", joined(pairs.collect()))
            }
        }
    }

    /// An SQL condition: `expression` holds weights, be it none.
    pub fn valid(self, expression: &str) -> String {
        match self {
            Self::Object => format!("coalesce(jsonb_typeof({expression}) = 'object', false)"),
            Self::SparseVector { .. } => format!("{expression} is not null"),
        }
    }
}

/// Many vectors as one array argument; none is null.
pub struct Vectors<'a> {
    pub of: &'a VectorType,
    pub rows: Vec<Option<&'a [f32]>>,
}

impl Type<Postgres> for Vectors<'_> {
    fn type_info() -> PgTypeInfo {
        // Never asked: `produces` names the real type.
        PgTypeInfo::with_name("vector")
    }
}

impl Encode<'_, Postgres> for Vectors<'_> {
    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(Oid(self.of.array_oid)))
    }

    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let count = i32::try_from(self.rows.len())?;
        // All at once: a buffer of megabytes that doubles as it grows is twice as large for a moment.
        let values = self.rows.iter().flatten().map(|vector| vector.len() * self.of.kind.width()).sum::<usize>();
        buffer.reserve(values + (self.rows.len() + 3) * 2 * HEADER);
        // A one-dimensional array: dimensions, has-nulls, element type, length, lower bound.
        let has_nulls = i32::from(self.rows.iter().any(Option::is_none));
        for part in [1, has_nulls] {
            buffer.extend(part.to_be_bytes());
        }
        buffer.extend(self.of.oid.to_be_bytes());
        for part in [count, 1] {
            buffer.extend(part.to_be_bytes());
        }
        for row in &self.rows {
            match row {
                Some(vector) => one(buffer, self.of.kind, vector)?,
                None => buffer.extend((-1_i32).to_be_bytes()),
            }
        }
        Ok(IsNull::No)
    }
}

/// pgvector's binary form: length, dimensions, an unused short, then the values.
fn one(buffer: &mut PgArgumentBuffer, kind: VectorKind, vector: &[f32]) -> Result<(), BoxDynError> {
    let dimensions = u16::try_from(vector.len())?;
    buffer.extend(i32::try_from(HEADER + vector.len() * kind.width())?.to_be_bytes());
    buffer.extend(dimensions.to_be_bytes());
    buffer.extend([0, 0]);
    let start = buffer.len();
    buffer.resize(start + vector.len() * kind.width(), 0);
    let values = &mut buffer[start..];
    match kind {
        VectorKind::Vector => {
            values.as_chunks_mut().0.iter_mut().zip(vector).for_each(|(bytes, value)| *bytes = value.to_be_bytes());
        }
        VectorKind::HalfVector => {
            let half = |value: &f32| half::f16::from_f32(*value).to_be_bytes();
            values.as_chunks_mut().0.iter_mut().zip(vector).for_each(|(bytes, value)| *bytes = half(value));
        }
    }
    Ok(())
}

/// Dimensions and the unused short.
const HEADER: usize = 4;

impl VectorKind {
    /// Bytes of a value.
    fn width(self) -> usize {
        match self {
            Self::Vector => 4,
            Self::HalfVector => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::VOCABULARY;

    #[test]
    fn weights_are_written_as_each_kind_of_column_reads_them() {
        let sparse = Sparse::new([(0, 0.5), (250_001, 1e-7), (7, 1.25)]).unwrap();
        assert_eq!(SparseKind::Object.text(&sparse), r#"{"0":0.5,"7":1.25,"250001":0.0000001}"#);
        let vector = SparseKind::SparseVector { dimensions: VOCABULARY };
        assert_eq!(vector.text(&sparse), "{1:0.5,8:1.25,250002:0.0000001}/250002");
        assert_eq!(SparseKind::Object.text(&Sparse::default()), "{}");
        assert_eq!(vector.text(&Sparse::default()), "{}/250002");
    }
}
