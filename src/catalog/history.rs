//! Earlier versions of the weights table.

use super::weights_table::{Published, WeightsTable};
use crate::error::{Error, Result};
use crate::storage::Location;
use std::collections::HashSet;

impl WeightsTable {
    /// The sidecars that the table at `location` held at a version: one from 0 on, or counted back from the newest where it is negative (−1
    /// is the one before).
    ///
    /// # Errors
    /// [`Error::Catalog`] where there is no such version, its log is cleaned up or its sidecars are vacuumed; what the store answers.
    pub async fn published_at(location: &Location, version: i64) -> Result<Vec<Published>> {
        let failed = |reason: String| Error::Catalog { location: location.to_string(), reason, source: None };
        let table = Self::open(location).await?;
        let Some(newest) = table.version() else { return Err(failed("does not exist yet: `pushpull run` makes it".to_owned())) };
        let wanted = match u64::try_from(version) {
            Ok(version) => Some(version),
            Err(_) => newest.checked_sub(version.unsigned_abs()),
        };
        let Some(wanted) = wanted.filter(|version| *version <= newest) else {
            return Err(failed(format!("has no version {version}; the newest is {newest}, the first 0")));
        };
        let table = table.at_version(wanted).await?;
        let published: Vec<Published> = table.published()?.into_values().collect();
        let there: HashSet<String> = location.join("data").list().await?.into_iter().map(|object| object.location.to_string()).collect();
        let gone = published.iter().filter(|sidecar| !there.contains(location.join(&sidecar.path).path().as_ref())).count();
        if gone > 0 {
            return Err(failed(format!("version {wanted} cannot be read: {gone} of its {} sidecars were vacuumed", published.len())));
        }
        Ok(published)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Publication;
    use crate::catalog::weights_table::tests::receipt;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use std::sync::Arc;

    #[tokio::test]
    async fn earlier_versions_stay_until_their_sidecars_go() {
        let place = Location::new(Arc::new(InMemory::new()), Path::from("lake/weights"), "memory://lake/weights".into());
        let error = WeightsTable::published_at(&place, 0).await.unwrap_err().to_string();
        assert!(error.contains("does not exist yet"), "{error}");
        let mut table = WeightsTable::open(&place).await.unwrap();
        for written in [
            vec![receipt("a", "1", "m1"), receipt("b", "1", "m1")],
            vec![receipt("a", "1", "m2")],
            vec![receipt("b", "1", "m2"), receipt("c", "1", "m2")],
        ] {
            for sidecar in &written {
                place.join(&sidecar.path).write(vec![0u8; 4]).await.unwrap();
            }
            table.publish(&Publication { written, ..Publication::default() }, serde_json::json!({})).await.unwrap();
        }
        let held = async |version: i64| -> Vec<(String, String)> {
            let published = WeightsTable::published_at(&place, version).await.unwrap();
            published.into_iter().map(|p| (p.shard, p.model)).collect()
        };
        let of = |pairs: &[(&str, &str)]| pairs.iter().map(|(s, m)| ((*s).to_owned(), (*m).to_owned())).collect::<Vec<_>>();
        assert_eq!(held(0).await, of(&[("a", "m1"), ("b", "m1")]));
        assert_eq!(held(1).await, of(&[("a", "m2"), ("b", "m1")]));
        assert_eq!(held(-1).await, held(1).await);
        assert_eq!(held(-2).await, held(0).await);
        assert_eq!(held(2).await, of(&[("a", "m2"), ("b", "m2"), ("c", "m2")]));
        for wrong in [3, -3] {
            let error = WeightsTable::published_at(&place, wrong).await.unwrap_err().to_string();
            assert!(error.contains(&format!("no version {wrong}")) && error.contains("newest is 2"), "{error}");
        }
        place.store().delete(place.join(&receipt("b", "1", "m1").path).path()).await.unwrap();
        let error = WeightsTable::published_at(&place, 1).await.unwrap_err().to_string();
        assert!(error.contains("version 1") && error.contains("1 of its 2 sidecars"), "{error}");
        assert_eq!(held(2).await.len(), 3);
    }
}
