//! Connections: from what an operator wrote to a pool.

#[cfg(feature = "databases")]
use std::str::FromStr;
use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Database, Pool,
    pool::PoolOptions,
    sqlite::{Sqlite, SqliteConnectOptions},
};
#[cfg(feature = "databases")]
use sqlx::{
    mysql::{MySql, MySqlConnectOptions, MySqlSslMode},
    postgres::{PgConnectOptions, PgSslMode, Postgres},
};

#[cfg(feature = "databases")]
use super::dsn::Dsn;
use super::storage::{DatabaseConfig, Driver};

/// How long a connection may take to be there.
const ACQUIRE: Duration = Duration::from_secs(10);
/// How long a write to SQLite waits for another process's.
const BUSY: Duration = Duration::from_secs(5);

/// Where a database is.
#[derive(Clone)]
pub(crate) enum Target {
    #[cfg(feature = "databases")]
    Postgres(Box<PgConnectOptions>),
    #[cfg(feature = "databases")]
    MySql(Box<MySqlConnectOptions>),
    Sqlite(PathBuf),
}

/// Connections to it.
pub(crate) enum Connections {
    #[cfg(feature = "databases")]
    Postgres(Bounded<Postgres>),
    #[cfg(feature = "databases")]
    MySql(Bounded<MySql>),
    Sqlite(PathBuf, Bounded<Sqlite>),
}

/// Does the same with whichever pool it is.
macro_rules! on_pool {
    ($connections:expr, $pool:ident => $body:expr) => {
        match $connections {
            #[cfg(feature = "databases")]
            $crate::database::connect::Connections::Postgres($crate::database::connect::Bounded {
                pool: $pool,
                ..
            }) => $body,
            #[cfg(feature = "databases")]
            $crate::database::connect::Connections::MySql($crate::database::connect::Bounded {
                pool: $pool, ..
            }) => $body,
            $crate::database::connect::Connections::Sqlite(
                _,
                $crate::database::connect::Bounded { pool: $pool, .. },
            ) => $body,
        }
    };
}
pub(crate) use on_pool;

/// A pool with a bound on its idle connections, for which the pool must know itself.
pub(crate) struct Bounded<DB: Database> {
    pub(crate) pool: Pool<DB>,
    /// What the pool sees of itself; emptied at the end, or it would keep itself alive.
    itself: Arc<Mutex<Option<Pool<DB>>>>,
}

// === impl Target ===

impl Target {
    /// What `config` says, or which key is wrong, and how.
    pub(crate) fn of(config: &DatabaseConfig, driver: Driver) -> Result<Self, (&'static str, String)> {
        match driver {
            #[cfg(feature = "databases")]
            Driver::Postgres => Ok(Self::Postgres(Box::new(postgres(config)?))),
            #[cfg(feature = "databases")]
            Driver::MySql => Ok(Self::MySql(Box::new(mysql(config)?))),
            #[cfg(not(feature = "databases"))]
            Driver::Postgres | Driver::MySql => Err(("driver", "needs the cargo feature `databases`".into())),
            Driver::Sqlite => sqlite(config).map(Self::Sqlite),
        }
    }

    /// A pool of them, which connects when it is used first.
    pub(crate) fn connect_lazily(&self, config: &DatabaseConfig) -> Connections {
        match self {
            #[cfg(feature = "databases")]
            Self::Postgres(options) => {
                let options = options.as_ref().clone().disable_statement_logging();
                Connections::Postgres(Bounded::new(config, |pool| pool.connect_lazy_with(options)))
            }
            #[cfg(feature = "databases")]
            Self::MySql(options) => {
                let options = options.as_ref().clone().disable_statement_logging();
                Connections::MySql(Bounded::new(config, |pool| pool.connect_lazy_with(options)))
            }
            Self::Sqlite(path) => {
                // The journal's mode is the file's, which may be another program's, too.
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .busy_timeout(BUSY)
                    .disable_statement_logging();
                Connections::Sqlite(path.clone(), Bounded::new(config, |pool| pool.connect_lazy_with(options)))
            }
        }
    }
}

#[cfg(feature = "databases")]
fn postgres(config: &DatabaseConfig) -> Result<PgConnectOptions, (&'static str, String)> {
    let what = |what: &str| ("dsn", format!("{what}; write it like postgres://user:password@host:5432/database"));
    if ["postgres://", "postgresql://"].iter().any(|scheme| config.dsn.starts_with(scheme)) {
        return PgConnectOptions::from_str(&config.dsn).map_err(|_| what("is not a URL that can be used"));
    }
    let dsn = Dsn::postgres(&config.dsn).map_err(|error| what(&error))?;
    let dsn = merged(dsn, config);
    let mut options = PgConnectOptions::new_without_pgpass();
    if dsn.socket.is_empty() {
        options = options.host(or(&dsn.host, "localhost"));
    } else {
        options = options.socket(&dsn.socket);
    }
    options = options.port(dsn.port.unwrap_or(5432));
    for (value, set) in [
        (&dsn.user, PgConnectOptions::username as fn(PgConnectOptions, &str) -> PgConnectOptions),
        (&dsn.password, PgConnectOptions::password),
        (&dsn.database, PgConnectOptions::database),
    ] {
        if !value.is_empty() {
            options = set(options, value);
        }
    }
    if let Some(mode) = dsn.parameter("sslmode") {
        options = options.ssl_mode(PgSslMode::from_str(mode).map_err(|_| {
            what("has an sslmode that is none of disable, allow, prefer, require, verify-ca and verify-full")
        })?);
    }
    for (name, set) in [
        ("sslrootcert", PgConnectOptions::ssl_root_cert as fn(PgConnectOptions, PathBuf) -> PgConnectOptions),
        ("sslcert", PgConnectOptions::ssl_client_cert),
        ("sslkey", PgConnectOptions::ssl_client_key),
    ] {
        if let Some(file) = dsn.parameter(name) {
            options = set(options, file.into());
        }
    }
    if let Some(path) = dsn.parameter("search_path") {
        options = options.options([("search_path", path)]);
    }
    Ok(options.application_name(dsn.parameter("application_name").unwrap_or("llmproxy")))
}

#[cfg(feature = "databases")]
fn mysql(config: &DatabaseConfig) -> Result<MySqlConnectOptions, (&'static str, String)> {
    let what = |what: &str| ("dsn", format!("{what}; write it like user:password@tcp(host:3306)/database"));
    if ["mysql://", "mariadb://"].iter().any(|scheme| config.dsn.starts_with(scheme)) {
        return MySqlConnectOptions::from_str(&config.dsn).map_err(|_| what("is not a URL that can be used"));
    }
    let dsn = match config.dsn.as_str() {
        "" => Dsn::default(),
        text => Dsn::mysql(text).map_err(|error| what(&error))?,
    };
    let dsn = merged(dsn, config);
    let mut options = MySqlConnectOptions::new().host(or(&dsn.host, "localhost")).port(dsn.port.unwrap_or(3306));
    if !dsn.socket.is_empty() {
        options = options.socket(&dsn.socket);
    }
    options = options.username(or(&dsn.user, "root"));
    if !dsn.password.is_empty() {
        options = options.password(&dsn.password);
    }
    if dsn.database.is_empty() {
        let key = if config.dsn.is_empty() { "database" } else { "dsn" };
        return Err((key, "must name the database that is written to".into()));
    }
    Ok(options.database(&dsn.database).ssl_mode(match dsn.parameter("tls") {
        None | Some("preferred") => MySqlSslMode::Preferred,
        Some("false") => MySqlSslMode::Disabled,
        Some("skip-verify") => MySqlSslMode::Required,
        Some("true") => MySqlSslMode::VerifyIdentity,
        Some(_) => return Err(what("has a `tls` that is none of true, false, preferred and skip-verify")),
    }))
}

/// What the DSN does not say, the keys beside it do.
#[cfg(feature = "databases")]
fn merged(mut dsn: Dsn, config: &DatabaseConfig) -> Dsn {
    if dsn.host.is_empty() && dsn.socket.is_empty() {
        let place = if config.host.starts_with('/') { &mut dsn.socket } else { &mut dsn.host };
        place.clone_from(&config.host);
    }
    dsn.port = dsn.port.or((config.port != 0).then_some(config.port));
    for (said, beside) in
        [(&mut dsn.user, &config.user), (&mut dsn.password, &config.password), (&mut dsn.database, &config.database)]
    {
        if said.is_empty() {
            said.clone_from(beside);
        }
    }
    dsn
}

#[cfg(feature = "databases")]
fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn sqlite(config: &DatabaseConfig) -> Result<PathBuf, (&'static str, String)> {
    let dsn = config.dsn.trim();
    let text = ["sqlite://", "sqlite:", "file:"].iter().find_map(|scheme| dsn.strip_prefix(scheme)).unwrap_or(dsn);
    // Go's drivers are told of locks and journals behind the `?`.
    let text = text.split('?').next().unwrap_or_default();
    match (text, config.path.as_os_str().is_empty()) {
        ("", true) => Err(("path", "must be given: the file to write to".into())),
        ("", false) => Ok(config.path.clone()),
        (":memory:", _) => Err(("dsn", "must be a file: what is only in memory would be lost".into())),
        (text, _) => Ok(text.into()),
    }
}

// === impl Connections ===

impl Connections {
    pub(crate) fn driver(&self) -> Driver {
        match self {
            #[cfg(feature = "databases")]
            Self::Postgres(_) => Driver::Postgres,
            #[cfg(feature = "databases")]
            Self::MySql(_) => Driver::MySql,
            Self::Sqlite(..) => Driver::Sqlite,
        }
    }

    /// Makes what must be there before anyone can connect: a file's folder.
    pub(crate) fn make_place(&self) -> io::Result<()> {
        match self {
            Self::Sqlite(path, _) => match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                Some(folder) => fs::create_dir_all(folder),
                None => Ok(()),
            },
            #[cfg(feature = "databases")]
            Self::Postgres(_) | Self::MySql(_) => Ok(()),
        }
    }
}

// === impl Bounded ===

impl<DB: Database> Bounded<DB> {
    fn new(config: &DatabaseConfig, connect: impl FnOnce(PoolOptions<DB>) -> Pool<DB>) -> Self {
        let known = |duration: Duration| (!duration.is_zero()).then_some(duration);
        let mut options = PoolOptions::new()
            .max_connections(config.max_open_conns.max(1))
            .acquire_timeout(ACQUIRE)
            .max_lifetime(known(config.conn_max_lifetime))
            .idle_timeout(known(config.conn_max_idle_time));
        let itself = Arc::new(Mutex::new(None::<Pool<DB>>));
        if let Some(most) = config.max_idle_conns {
            let itself = itself.clone();
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            options = options.after_release(move |_, _| {
                let pool = itself.lock().unwrap_or_else(PoisonError::into_inner);
                let keep = pool.as_ref().is_some_and(|pool| pool.num_idle() < most);
                Box::pin(async move { Ok(keep) })
            });
        }
        let pool = connect(options);
        *itself.lock().unwrap_or_else(PoisonError::into_inner) = Some(pool.clone());
        Self { pool, itself }
    }
}

impl<DB: Database> Drop for Bounded<DB> {
    fn drop(&mut self) {
        *self.itself.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(all(test, feature = "databases"))]
mod tests {
    use super::*;

    fn config(driver: &str, dsn: &str) -> DatabaseConfig {
        DatabaseConfig { driver: driver.into(), dsn: dsn.into(), ..DatabaseConfig::default() }
    }

    #[test]
    fn urls_and_the_forms_of_go_say_the_same() {
        for dsn in
            ["postgres://u:p@h:5433/d?sslmode=disable", "host=h port=5433 user=u password=p dbname=d sslmode=disable"]
        {
            let options = postgres(&config("postgres", dsn)).unwrap();
            let said = (options.get_host(), options.get_port(), options.get_username(), options.get_database());
            assert_eq!(said, ("h", 5433, "u", Some("d")), "{dsn}");
            assert!(matches!(options.get_ssl_mode(), PgSslMode::Disable), "{dsn}");
        }
        for dsn in ["mysql://u:p@h:3307/d", "u:p@tcp(h:3307)/d?parseTime=true&charset=utf8mb4&loc=Local"] {
            let options = mysql(&config("mysql", dsn)).unwrap();
            let said = (options.get_host(), options.get_port(), options.get_username(), options.get_database());
            assert_eq!(said, ("h", 3307, "u", Some("d")), "{dsn}");
            assert!(matches!(options.get_ssl_mode(), MySqlSslMode::Preferred), "{dsn}");
        }
    }

    #[test]
    fn keys_say_where_it_is_without_a_dsn() {
        let mut keys = config("postgres", "");
        (keys.host, keys.port, keys.user, keys.database) = ("h".into(), 1, "u".into(), "d".into());
        let options = postgres(&keys).unwrap();
        assert_eq!((options.get_host(), options.get_port(), options.get_database()), ("h", 1, Some("d")));
        assert_eq!(mysql(&keys).unwrap().get_database(), Some("d"));
        keys.database.clear();
        assert_eq!(mysql(&keys).unwrap_err().0, "database");
        keys.path = "a.db".into();
        assert_eq!(sqlite(&keys), Ok("a.db".into()));
        for dsn in ["file:b.db?_journal=WAL", "b.db", "sqlite:b.db", "sqlite://b.db"] {
            assert_eq!(sqlite(&config("sqlite", dsn)), Ok("b.db".into()), "{dsn}");
        }
        assert_eq!(sqlite(&config("sqlite", ":memory:")).unwrap_err().0, "dsn");
        assert_eq!(sqlite(&config("sqlite", "")).unwrap_err().0, "path");
    }
}
