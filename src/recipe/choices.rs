//! Choices by name, and those for methods that select elements.

use serde::{Serialize, Serializer};

/// Declares an enum whose variants have names in a recipe; the first one is the default.
macro_rules! choice {
    ($(#[$about:meta])* $name:ident { $(#[$first_about:meta])* $first:ident = $first_text:literal
        $(, $(#[$more_about:meta])* $more:ident = $more_text:literal)* $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub enum $name {
            $(#[$first_about])*
            #[default]
            $first,
            $($(#[$more_about])* $more,)*
        }

        impl $name {
            /// Every choice and its name.
            pub const CHOICES: &'static [(&'static str, Self)] =
                &[($first_text, Self::$first), $(($more_text, Self::$more)),*];

            /// Returns the choice of this name.
            pub fn parse(text: &str) -> Option<Self> {
                Self::CHOICES.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice)
            }

            /// Returns the name of the choice.
            pub fn name(self) -> &'static str {
                match self {
                    Self::$first => $first_text,
                    $(Self::$more => $more_text,)*
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    };
}

pub(super) use choice;

choice! {
    /// The choice among elements that are tied at a threshold.
    TieRule {
        /// Evenly over the tensor.
        Spread = "spread",
        /// Those with the lowest flat indices.
        First = "first",
    }
}

choice! {
    /// The sign that is elected where weighted differences cancel.
    SignRule {
        /// Plus.
        Plus = "plus",
        /// None: nothing is added there.
        Zero = "zero",
    }
}

choice! {
    /// The divisor that makes up for what is dropped.
    RescaleBy {
        /// The share of the L1 norm that is left.
        Norm = "norm",
        /// The density.
        Density = "density",
        /// Each element's own probability.
        Probability = "probability",
    }
}
