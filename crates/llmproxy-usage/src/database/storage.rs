//! `storage.databases[]`: the databases that other keys name.

use std::{fmt, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::connect::Target;

const DEFAULT_MAX_OPEN: u32 = 4;
/// More would be a server of its own.
const MAX_OPEN: u32 = 1000;

/// The `storage:` block: databases that reporters name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StorageConfig {
    /// The databases. One that nothing refers to is not looked at, and may be wrong.
    pub databases: Vec<DatabaseConfig>,
}

/// One database. Where it is says `dsn`; or `path` for SQLite, and `host`, `port`, `user`, `password` and `database` for the
/// others. Its pool is opened by the first record that goes there.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct DatabaseConfig {
    /// What others call it.
    pub name: String,
    /// Whether it may be used; true.
    pub enabled: bool,
    /// `postgres`, `mysql`, `mariadb` or `sqlite`.
    pub driver: String,
    /// A URL, or what the Go program's drivers take: `user:password@tcp(host:3306)/database`,
    /// `host=... user=... dbname=...`, or a file's name.
    pub dsn: String,
    /// Its server; a path is a folder with a Unix socket (PostgreSQL), or the socket (MySQL). localhost.
    pub host: String,
    /// The server's port; the driver's usual one.
    pub port: u16,
    /// As whom.
    pub user: String,
    /// With what.
    pub password: String,
    /// The database on that server.
    pub database: String,
    /// The file, for SQLite.
    pub path: PathBuf,
    /// Connections at most, for each reporter; 4.
    pub max_open_conns: u32,
    /// Connections that stay open while nothing is written; as many as there may be.
    pub max_idle_conns: Option<u32>,
    /// The age at which a connection is replaced; 30m. 0 is never.
    #[serde(with = "llmproxy_core::duration")]
    pub conn_max_lifetime: Duration,
    /// How long a connection stays open without use; 10m. 0 is for ever.
    #[serde(with = "llmproxy_core::duration")]
    pub conn_max_idle_time: Duration,
}

/// What speaks to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    Postgres,
    /// MariaDB as well.
    MySql,
    Sqlite,
}

// === impl StorageConfig ===

impl StorageConfig {
    /// The database of that name, with its place in the list.
    pub(crate) fn find(&self, name: &str) -> Result<(usize, &DatabaseConfig), String> {
        let mut named = self.databases.iter().enumerate().filter(|(_, database)| database.name == name);
        match (named.next(), named.next()) {
            (None, _) => {
                let names: Vec<_> = self.databases.iter().map(|database| database.name.as_str()).collect();
                Err(match names.is_empty() {
                    true => {
                        format!("`{name}` is not among storage.databases, which has no entry; add one with this name")
                    }
                    false => format!("`{name}` is not among storage.databases, which has {}", names.join(", ")),
                })
            }
            (Some(_), Some(_)) => Err(format!("`{name}` is the name of two entries of storage.databases; rename one")),
            (Some((index, found)), None) if !found.enabled => {
                Err(format!("storage.databases[{index}], `{name}`, is disabled; enable it, or disable this reporter"))
            }
            (Some(found), None) => Ok(found),
        }
    }
}

// === impl DatabaseConfig ===

impl DatabaseConfig {
    /// Everything that is wrong with it: the key, and what is allowed. No message holds what may be a password.
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        let mut say = |key: &str, what: String| wrong.push((key.to_owned(), what));
        match self.driver() {
            Ok(driver) => {
                if let Err((key, what)) = Target::of(self, driver) {
                    say(key, what);
                }
            }
            Err(what) => say("driver", what),
        }
        if !(1..=MAX_OPEN).contains(&self.max_open_conns) {
            say("max_open_conns", format!("must be from 1 to {MAX_OPEN}"));
        }
        wrong
    }

    pub(crate) fn driver(&self) -> Result<Driver, String> {
        let driver = match self.driver.to_ascii_lowercase().as_str() {
            "postgres" | "postgresql" => Driver::Postgres,
            "mysql" | "mariadb" => Driver::MySql,
            "sqlite" | "sqlite3" => return Ok(Driver::Sqlite),
            "" => return Err("must be given: postgres, mysql, mariadb or sqlite".into()),
            other => return Err(format!("`{other}` is not a driver; use postgres, mysql, mariadb or sqlite")),
        };
        if cfg!(feature = "databases") {
            return Ok(driver);
        }
        Err(format!("{} needs a build with the cargo feature `databases`; this one has only sqlite", self.driver))
    }
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            enabled: true,
            driver: String::new(),
            dsn: String::new(),
            host: String::new(),
            port: 0,
            user: String::new(),
            password: String::new(),
            database: String::new(),
            path: PathBuf::new(),
            max_open_conns: DEFAULT_MAX_OPEN,
            max_idle_conns: None,
            conn_max_lifetime: Duration::from_secs(30 * 60),
            conn_max_idle_time: Duration::from_secs(10 * 60),
        }
    }
}

impl fmt::Debug for DatabaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The DSN holds the password, too.
        f.debug_struct("DatabaseConfig")
            .field("name", &self.name)
            .field("enabled", &self.enabled)
            .field("driver", &self.driver)
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("path", &self.path)
            .field("max_open_conns", &self.max_open_conns)
            .field("max_idle_conns", &self.max_idle_conns)
            .field("conn_max_lifetime", &self.conn_max_lifetime)
            .field("conn_max_idle_time", &self.conn_max_idle_time)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_and_no_debug_text_holds_a_password() {
        for (driver, dsn) in [
            ("postgres", "postgres://u:geheim@h:port/db"),
            ("postgres", "host=h password=geheim port=geheim"),
            ("mysql", "u:geheim@h:3306"),
            ("mysql", "mysql://u:geheim@[h/db"),
            ("oracle", "u:geheim@h"),
        ] {
            let config = DatabaseConfig {
                driver: driver.into(),
                dsn: dsn.into(),
                password: "geheim".into(),
                ..DatabaseConfig::default()
            };
            let wrong = config.validate();
            assert!(!wrong.is_empty(), "{dsn}");
            let text = format!("{wrong:?} {config:?}");
            assert!(!text.contains("geheim"), "{text}");
        }
    }

    #[test]
    fn what_a_reporter_refers_to_must_be_there_and_be_one() {
        let named = |name: &str, enabled| DatabaseConfig { name: name.into(), enabled, ..DatabaseConfig::default() };
        let storage =
            StorageConfig { databases: vec![named("a", true), named("b", false), named("c", true), named("c", true)] };
        assert_eq!(storage.find("a").unwrap().0, 0);
        assert!(storage.find("b").unwrap_err().contains("disabled"));
        assert!(storage.find("c").unwrap_err().contains("two entries"));
        assert!(storage.find("d").unwrap_err().contains("has a, b, c, c"));
        assert!(StorageConfig::default().find("d").unwrap_err().contains("no entry"));
    }
}
