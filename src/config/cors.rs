//! Reads `cors:`, at the top level or in a route, and fills in what it inherits.
//!
//! A mistake is reported once, at the key where it is written.

use crate::{
    config::{
        document::Section,
        scalars::{Unit, boolean},
        wording::quote,
    },
    cors::{Cors, Credentials, Settings},
};

/// A `cors:` with every key filled in, and the policy that it gives.
#[derive(Debug)]
pub struct Policy {
    settings: Settings,
    /// `None` = off.
    pub cors: Option<Cors>,
    /// False where a mistake in it was reported already.
    sound: bool,
}

impl Policy {
    /// The policy without any `cors:`: every default, and no origin.
    pub fn off() -> Policy {
        Policy {
            settings: default_settings(),
            cors: None,
            sound: true,
        }
    }

    /// This policy with the `cors:` of a section laid over it; `None` where the section has none. `cors: true` in a route
    /// means the policy above it, and is a mistake where that is off.
    pub fn laid_under(&self, s: &Section<'_>) -> Option<Policy> {
        let field = s.get("cors")?;
        match field.is_flag() {
            Some(true) => {
                if self.cors.is_none() && self.sound {
                    field.complain(
                        "true enables nothing: list the origins, as in cors: {allowed_origins: [\"https://app.example.com\"]}",
                    );
                }
                None
            }
            Some(false) => Some(Policy {
                settings: Settings {
                    allowed_origins: Vec::new(),
                    ..self.settings.clone()
                },
                cors: None,
                sound: true,
            }),
            None => field.section(|s| (!s.is_empty()).then(|| self.with(s))),
        }
    }

    /// This policy with the keys of a section instead of its own.
    fn with(&self, s: &Section<'_>) -> Policy {
        let so_far = s.field().error_count();
        let inherited = &self.settings;
        let settings = Settings {
            allowed_origins: s.words("allowed_origins", &inherited.allowed_origins),
            allowed_methods: s.words("allowed_methods", &inherited.allowed_methods),
            allowed_headers: s.words("allowed_headers", &inherited.allowed_headers),
            exposed_headers: s.words("exposed_headers", &inherited.exposed_headers),
            allow_credentials: credentials(s).unwrap_or(inherited.allow_credentials),
            max_age: s.whole("max_age", Unit::Seconds, inherited.max_age, &(-1..=MAX_AGE)),
        };
        let is_read = s.field().error_count() == so_far;
        let (cors, complaints) = match Cors::new(&settings) {
            Ok(cors) => (cors, Vec::new()),
            Err(complaints) => (None, complaints),
        };
        let sound = is_read && complaints.is_empty();
        for complaint in complaints {
            // a mistake in an inherited value was reported where it is written
            if is_read && (self.sound || s.get(complaint.key).is_some()) {
                s.complain_at(complaint.key, complaint.index, complaint.sentence);
            }
        }
        Policy {
            settings,
            cors,
            sound,
        }
    }
}

/// The defaults of `cors:`.
fn default_settings() -> Settings {
    let words = |words: &[&str]| words.iter().copied().map(String::from).collect();
    Settings {
        allowed_origins: Vec::new(),
        allowed_methods: words(&["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]),
        allowed_headers: words(&["Content-Type", "Authorization", "X-Requested-With"]),
        exposed_headers: Vec::new(),
        allow_credentials: Credentials::Auto,
        max_age: 86400,
    }
}

fn credentials(s: &Section<'_>) -> Option<Credentials> {
    let field = s.get("allow_credentials")?;
    let text = field.text()?;
    match (text.as_str(), boolean(&text)) {
        ("auto", _) => Some(Credentials::Auto),
        (_, Some(true)) => Some(Credentials::Yes),
        (_, Some(false)) => Some(Credentials::No),
        _ => {
            field.complain(format!("must be auto, true or false, got {}", quote(&text)));
            None
        }
    }
}

/// Ten years in seconds; browsers cap it at a day or less.
const MAX_AGE: i64 = 315_360_000;
