//! How the Go program's drivers are told where a database is.

/// Where a server is, as a DSN says it. What it does not say is empty.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Dsn {
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    /// The file of a Unix socket.
    pub(crate) socket: String,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) database: String,
    /// Everything else, in its order.
    pub(crate) parameters: Vec<(String, String)>,
}

// === impl Dsn ===

impl Dsn {
    /// The form of go-sql-driver/mysql: `user:password@tcp(host:3306)/database?parseTime=true`.
    ///
    /// # Errors
    ///
    /// What is wrong, without a word of the text, which holds a password.
    pub(crate) fn mysql(text: &str) -> Result<Self, String> {
        // A password may hold any of the signs, so the last ones count, as they do there.
        let (head, tail) = text.rsplit_once('/').ok_or("has no `/` before the database's name")?;
        let (login, address) = head.rsplit_once('@').unwrap_or(("", head));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (database, query) = tail.split_once('?').unwrap_or((tail, ""));
        let mut dsn =
            Self { user: user.into(), password: password.into(), database: database.into(), ..Self::default() };
        let (net, place) = match address.split_once('(') {
            Some((net, place)) => (net, place.strip_suffix(')').ok_or("has a `(` without its `)`")?),
            None => (address, ""),
        };
        match net {
            "" if place.is_empty() => {}
            "tcp" if place.is_empty() => {}
            "tcp" => (dsn.host, dsn.port) = host_and_port(place)?,
            "unix" => dsn.socket = place.into(),
            _ => return Err("must name its server as tcp(host:port) or unix(/path/of/the/socket)".into()),
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            dsn.parameters.push((key.into(), value.into()));
        }
        Ok(dsn)
    }

    /// The form of libpq: `host=... port=... user=... password='...' dbname=...`.
    ///
    /// # Errors
    ///
    /// What is wrong, without a word of the text, which holds a password.
    pub(crate) fn postgres(text: &str) -> Result<Self, String> {
        let mut dsn = Self::default();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (key, after) =
                rest.split_once('=').ok_or("must be a URL, or pairs like host=... user=... dbname=...")?;
            let (value, after) = quoted(after.trim_start())?;
            match key.trim() {
                "host" | "hostaddr" if value.starts_with('/') => dsn.socket = value,
                "host" | "hostaddr" => dsn.host = value,
                "port" => dsn.port = Some(value.parse().map_err(|_| "has a port that is no number up to 65535")?),
                "user" => dsn.user = value,
                "password" => dsn.password = value,
                "dbname" | "database" => dsn.database = value,
                key => dsn.parameters.push((key.into(), value)),
            }
            rest = after.trim_start();
        }
        Ok(dsn)
    }

    /// The parameter of that name, whatever its case.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

fn host_and_port(place: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => place.rsplit_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map(|port| port.parse().map_err(|_| "has a port that is no number up to 65535")).transpose()?;
    Ok((host.into(), port))
}

/// A value, quoted or not, and what follows it.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let inner = text.strip_prefix('\'');
    let (text, in_quotes) = (inner.unwrap_or(text), inner.is_some());
    let mut value = String::new();
    let mut signs = text.char_indices();
    while let Some((at, sign)) = signs.next() {
        match sign {
            '\\' => value.extend(signs.next().map(|(_, sign)| sign)),
            '\'' if in_quotes => return Ok((value, &text[at + 1..])),
            sign if sign.is_whitespace() && !in_quotes => return Ok((value, &text[at..])),
            sign => value.push(sign),
        }
    }
    if in_quotes { Err("has a `'` without its second one".into()) } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_mysql_form() {
        let check = |text: &str, expected: [&str; 5], port: Option<u16>| {
            let dsn = Dsn::mysql(text).unwrap();
            assert_eq!([&*dsn.user, &dsn.password, &dsn.host, &dsn.socket, &dsn.database], expected, "{text}");
            assert_eq!(dsn.port, port, "{text}");
        };
        check("u:p@tcp(h:3307)/db?parseTime=true&tls=skip-verify", ["u", "p", "h", "", "db"], Some(3307));
        check("u:p@:/x@tcp([::1]:3307)/db", ["u", "p@:/x", "::1", "", "db"], Some(3307));
        check("u@unix(/run/mysqld.sock)/db", ["u", "", "", "/run/mysqld.sock", "db"], None);
        check("/db", ["", "", "", "", "db"], None);
        check("u:p@tcp(h)/", ["u", "p", "h", "", ""], None);
        assert_eq!(Dsn::mysql("u@tcp(h)/d?tls=true").unwrap().parameter("TLS"), Some("true"));
        for text in ["", "u:p@h:3306", "u@h/db", "u@tcp(h:99999)/db", "u@tcp(h/db"] {
            assert!(Dsn::mysql(text).is_err(), "{text}");
        }
    }

    #[test]
    fn libpqs_form() {
        let check = |text: &str, expected: [&str; 5], port: Option<u16>| {
            let dsn = Dsn::postgres(text).unwrap();
            assert_eq!([&*dsn.user, &dsn.password, &dsn.host, &dsn.socket, &dsn.database], expected, "{text}");
            assert_eq!(dsn.port, port, "{text}");
        };
        check("host=h port=5433 user=u password=p dbname=d sslmode=disable", ["u", "p", "h", "", "d"], Some(5433));
        check(r"  host = h user=u password='a \'b\\ c' ", ["u", r"a 'b\ c", "h", "", ""], None);
        check(r"password=a\ b host=/run/postgresql", ["", "a b", "", "/run/postgresql", ""], None);
        assert_eq!(Dsn::postgres("host=h sslmode=require").unwrap().parameter("sslmode"), Some("require"));
        for text in ["h", "port=x", "port=70000", "password='a"] {
            assert!(Dsn::postgres(text).is_err(), "{text}");
        }
    }
}
