//! The numbers that stand in the code of the programs ([`abi::constants`]).

use std::collections::BTreeMap;

use abi::constants::{self, NARROW, WIDE};

use super::flat::Table;

/// Bytes of an instruction (RFC 9669 section 3.1). One with a 64-bit immediate takes up two.
const INSTRUCTION: usize = 8;
/// Code of a load of a 64-bit immediate.
const LOAD_WIDE: u8 = 0x18;
/// Codes of operations on 64-bit registers and a 32-bit immediate, which is extended with its sign.
const MULTIPLY: u8 = 0x27;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
/// A jump if a 64-bit register is not less than such an immediate, both as numbers without a sign.
const NOT_LESS: u8 = 0x35;

/// Values of constants, by their numbers.
pub(super) struct Numbers(BTreeMap<u32, u64>);

impl Numbers {
    /// How many rows these tables have.
    pub(super) fn of<'a>(tables: impl IntoIterator<Item = &'a Table>) -> Self {
        let mut numbers = Self(BTreeMap::new());
        for table in tables {
            let Table { name, rows, .. } = *table;
            let table = constants::table(name);
            numbers.set(constants::rows(table), rows.into());
            if rows.is_power_of_two() {
                numbers.set(constants::mask(table), (rows - 1).into());
            }
        }
        numbers
    }

    /// Gives a constant its value.
    pub(super) fn set(&mut self, number: u32, value: u64) {
        self.0.insert(number, value);
    }

    /// Writes them in the places of the placeholders of this code.
    pub(super) fn write(&self, code: &mut [u8]) -> Result<(), String> {
        let mut at = 0;
        while let Some(instruction) = code.get(at..at + INSTRUCTION) {
            let low = immediate(instruction);
            let wide = instruction[0] == LOAD_WIDE;
            if wide && let Some(rest) = code.get(at + INSTRUCTION..at + 2 * INSTRUCTION) {
                let (high, address) = (immediate(rest), instruction[1] >> 4 != 0);
                if high == (WIDE >> 32) as u32 && !address {
                    let value = self.value(low)?;
                    put(code, at, value as u32);
                    put(code, at + INSTRUCTION, (value >> 32) as u32);
                }
            } else if matches!(instruction[0], AND | MULTIPLY | SHIFT_RIGHT | NOT_LESS)
                && low & 0xffff_0000 == NARROW
            {
                let value = i32::try_from(self.value(low & 0xffff)?)
                    .map_err(|_| format!("constant {}: more than 31 bits", low & 0xffff))?;
                put(code, at, value as u32);
            }
            at += if wide { 2 * INSTRUCTION } else { INSTRUCTION };
        }
        Ok(())
    }

    fn value(&self, number: u32) -> Result<u64, String> {
        let value = self.0.get(&number).copied();
        value.ok_or_else(|| format!("the programs ask for constant {number}, which has no value"))
    }
}

fn immediate(instruction: &[u8]) -> u32 {
    instruction[4..].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn put(code: &mut [u8], at: usize, immediate: u32) {
    code[at + 4..at + 8].copy_from_slice(&immediate.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> Numbers {
        let mut numbers = Numbers(BTreeMap::new());
        numbers.set(constants::SEED, 0x0123_4567_89ab_cdef);
        numbers.set(constants::mask(2), 1023);
        numbers
    }

    fn instruction(code: u8, registers: u8, immediate: u32) -> Vec<u8> {
        let mut bytes = vec![code, registers, 0, 0];
        bytes.extend(immediate.to_le_bytes());
        bytes
    }

    #[test]
    fn placeholders_become_values_and_nothing_else_does() {
        let wide = |source: u8, high: u32| {
            let mut code = instruction(LOAD_WIDE, source << 4 | 1, constants::SEED);
            code.extend(instruction(0, 0, high));
            code
        };
        let high = (WIDE >> 32) as u32;
        let mut code = wide(0, high);
        code.extend(instruction(AND, 2, NARROW | constants::mask(2)));
        code.extend(instruction(NOT_LESS, 2, NARROW | constants::mask(2)));
        // An address; another constant of 64 bits, whose second half looks like an operation; and another operation.
        let mut other = wide(2, high);
        other.extend(wide(0, high + 1));
        other.extend(instruction(0x47, 2, NARROW | constants::mask(2)));
        code.extend(&other);

        numbers().write(&mut code).unwrap();
        assert_eq!(code[4..8], 0x89ab_cdef_u32.to_le_bytes());
        assert_eq!(code[12..16], 0x0123_4567_u32.to_le_bytes());
        assert_eq!(code[20..24], 1023u32.to_le_bytes());
        assert_eq!(code[28..32], 1023u32.to_le_bytes());
        assert_eq!(code[32..], other);
    }

    #[test]
    fn a_constant_without_a_value_is_named() {
        let mut code = instruction(MULTIPLY, 1, NARROW | constants::NAT_MASK);
        let error = numbers().write(&mut code).unwrap_err();
        assert!(error.contains("constant 4,"), "{error}");
    }

    #[test]
    fn a_value_that_does_not_fit_is_refused() {
        let mut code = instruction(AND, 1, NARROW | constants::SEED);
        assert!(numbers().write(&mut code).unwrap_err().contains("31 bits"));
    }
}
