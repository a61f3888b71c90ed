//! Which weight columns go into spliced shards, and under which names.

use super::sidecar::{WEIGHT_COLUMNS, sidecar_schema};
use crate::error::{Error, Result, nearest};
use arrow::datatypes::FieldRef;
use std::sync::Arc;

/// The column that is spliced in where nobody asks for others.
pub const DEFAULT_SPLICED_COLUMNS: [&str; 1] = ["weight"];

/// A name like `name` that is not taken: with `pushpull_` before it, once or more often.
pub(crate) fn free_name(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut name = name.to_owned();
    while taken(&name) {
        name = format!("pushpull_{name}");
    }
    name
}

/// The columns taken from sidecars, in the order in which they follow the base's.
#[derive(Debug, Clone, PartialEq)]
pub struct SplicedColumns {
    columns: Vec<SplicedColumn>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub struct SplicedColumn {
    /// Its name in the sidecar.
    pub name: String,
    /// Its field in spliced shards: another name where a base column has it already.
    pub field: FieldRef,
}

impl SplicedColumns {
    /// The columns `asked` for, of [`WEIGHT_COLUMNS`], beside base columns of the names `base`. Names are compared without regard to
    /// case, as most engines do.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a name that no sidecar column has or that comes twice, and for none at all.
    pub fn beside<S: AsRef<str>>(asked: &[S], base: &[String]) -> Result<Self> {
        let invalid = |reason: String| Err(Error::InvalidOption { name: "columns".into(), reason });
        let schema = sidecar_schema();
        let mut columns: Vec<SplicedColumn> = Vec::with_capacity(asked.len());
        for name in asked.iter().map(AsRef::as_ref) {
            let Ok(field) = schema.field_with_name(name) else {
                let known = WEIGHT_COLUMNS.join(", ");
                return invalid(match nearest(name, WEIGHT_COLUMNS) {
                    Some(near) => format!("there is no weight column `{name}`; did you mean `{near}`? There are: {known}"),
                    None => format!("there is no weight column `{name}`; there are: {known}"),
                });
            };
            if columns.iter().any(|column| column.name == name) {
                return invalid(format!("`{name}` is named twice"));
            }
            let served = free_name(name, |name| base.iter().any(|taken| taken.eq_ignore_ascii_case(name)));
            columns.push(SplicedColumn { name: name.to_owned(), field: Arc::new(field.clone().with_name(served)) });
        }
        if columns.is_empty() {
            return invalid("name at least one weight column".to_owned());
        }
        Ok(Self { columns })
    }

    /// The columns, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, SplicedColumn> {
        self.columns.iter()
    }

    /// The name in spliced shards of the sidecar's column `name`, if it is among them.
    pub fn served(&self, name: &str) -> Option<&str> {
        self.columns.iter().find(|column| column.name == name).map(|column| column.field.name().as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_column_keeps_its_name_whatever_its_case() {
        let base = ["Weight".to_owned(), "pushpull_weight".to_owned()];
        let columns = SplicedColumns::beside(&["weight", "pull"], &base).unwrap();
        assert_eq!((columns.served("weight"), columns.served("pull")), (Some("pushpull_pushpull_weight"), Some("pull")));
        assert_eq!(columns.served("push"), None);
    }

    #[test]
    fn slips_are_named() {
        let error = |asked: &[&str]| SplicedColumns::beside(asked, &[]).unwrap_err().to_string();
        assert!(error(&["wieght"]).contains("did you mean `weight`"));
        assert!(error(&["weight", "weight"]).contains("twice"));
        assert!(error(&[]).contains("at least one"));
    }
}
