//! What of an object is not carried out, and why.

use std::fmt;

/// Something that an object asks for and that is not done as asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// Kind, namespace and name: `Service default/web`.
    pub object: String,
    /// Path of the field, as `kubectl explain` takes it, with indexes: `spec.ports[0].protocol`.
    pub field: String,
    /// What comes of it.
    pub effect: Effect,
    /// Why, in a sentence.
    pub text: String,
}

/// What comes of a field that cannot be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// The object as a whole makes no service.
    Skipped,
    /// This part of it (an address, a port, an endpoint) is missing from the service.
    LeftOut,
    /// The service is as if the field were not set.
    Ignored,
}

impl Effect {
    /// In messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::LeftOut => "left out",
            Self::Ignored => "ignored",
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, field, effect, text } = self;
        write!(f, "{object}: {field}: {}: {text}", effect.as_str())
    }
}

/// The notices of one object, as they are found.
pub(crate) struct Notices {
    object: String,
    found: Vec<Notice>,
}

impl Notices {
    pub(crate) fn of(object: String) -> Self {
        Self { object, found: Vec::new() }
    }

    pub(crate) fn add(
        &mut self,
        field: impl Into<String>,
        effect: Effect,
        text: impl Into<String>,
    ) {
        let object = self.object.clone();
        self.found.push(Notice { object, field: field.into(), effect, text: text.into() });
    }

    pub(crate) fn into_vec(self) -> Vec<Notice> {
        self.found
    }
}
