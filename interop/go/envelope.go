package main

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// The envelope of docs/reference/sessions.md, version 1.
const (
	envelopeSize    = 40
	envelopeVersion = 1
)

var envelopeMagic = []byte("\xf7RHSES")

type envelopeKind byte

const (
	kindPlain envelopeKind = iota
	kindOpen
	kindRequest
	kindOnce
)

type envelopeID [16]byte

type envelope struct {
	kind    envelopeKind
	id      envelopeID
	a, b    uint64
	command []byte
}

// Refusals of a session are answers: they are the same on every replica, and definite.
var (
	errSessionFormat  = errors.New("SessionFormatError: no envelope that is known here")
	errSessionExpired = errors.New("SessionExpiredError: the request's session is not known, or it was given up")
	errRequestReused  = errors.New("RequestReusedError: another request was made under this id")
	errOverloaded     = errors.New("OverloadedError: too many answers are remembered")
)

func isEnvelope(data []byte) bool {
	return bytes.HasPrefix(data, envelopeMagic)
}

func parseEnvelope(data []byte) (*envelope, error) {
	if len(data) < envelopeSize || data[6] != envelopeVersion || envelopeKind(data[7]) > kindOnce {
		return nil, errSessionFormat
	}
	e := &envelope{
		kind:    envelopeKind(data[7]),
		a:       binary.BigEndian.Uint64(data[24:]),
		b:       binary.BigEndian.Uint64(data[32:]),
		command: data[envelopeSize:],
	}
	copy(e.id[:], data[8:24])
	return e, nil
}

// remembered is an answer as the table keeps it.
type remembered struct {
	kind    byte
	content []byte
}

const (
	answerValue   = 0
	answerSizeMax = 16 << 10
	answerKindMax = 2
)

// remember packs what a ledger answers, a position, as msgpack does: in the shortest form.
func remember(answer interface{}) remembered {
	number := uint64(answer.(int))
	var full [9]byte
	binary.BigEndian.PutUint64(full[1:], number)
	switch {
	case number < 1<<7:
		return remembered{answerValue, full[8:]}
	case number < 1<<8:
		return remembered{answerValue, append([]byte{0xcc}, full[8:]...)}
	case number < 1<<16:
		return remembered{answerValue, append([]byte{0xcd}, full[7:]...)}
	case number < 1<<32:
		return remembered{answerValue, append([]byte{0xce}, full[5:]...)}
	}
	full[0] = 0xcf
	return remembered{answerValue, full[:]}
}

// answer is what whoever asks again gets: a position again.
func (r remembered) answer() interface{} {
	if r.kind != answerValue || len(r.content) == 0 {
		return errors.New("RemoteApplyError: " + string(r.content))
	}
	digits := r.content[1:]
	if len(digits) == 0 {
		digits = r.content
	}
	number := 0
	for _, digit := range digits {
		number = number<<8 | int(digit)
	}
	return number
}
