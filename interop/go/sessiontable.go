package main

import (
	"container/list"
	"time"
)

// Limits and times of version 1. They are no settings: replicas with others would drift apart.
const (
	stepMax         = int64(60 * time.Second)
	sessionTTL      = int64(time.Hour)
	keyTTL          = int64(24 * time.Hour)
	keyTTLMin       = int64(10 * time.Minute)
	timeEndSeconds  = 9214646400
	sessionCost     = 512
	answerCost      = 128
	keyCost         = 256
	sessionSizeMax  = 64 << 20
	sessionsSizeMax = 128 << 20
	keysSizeMax     = 64 << 20
)

type session struct {
	id      envelopeID
	used    int64
	lowest  uint64
	answers map[uint64]remembered
	size    int
}

type key struct {
	id          envelopeID
	fingerprint uint64
	at          int64
	answer      remembered
}

func (k *key) size() int { return keyCost + len(k.answer.content) }

// sessionTable decides what an envelope comes to, by the entries alone. Each list is in the order in
// which its elements expire.
type sessionTable struct {
	clock, last  int64
	sessions     *list.List // of *session, the one used longest ago first
	keys         *list.List // of *key, the oldest first
	sessionByID  map[envelopeID]*list.Element
	keyByID      map[envelopeID]*list.Element
	sessionsSize int
	keysSize     int
}

func newSessionTable() *sessionTable {
	return &sessionTable{
		sessions: list.New(), keys: list.New(),
		sessionByID: map[envelopeID]*list.Element{}, keyByID: map[envelopeID]*list.Element{},
	}
}

func (t *sessionTable) isPristine() bool {
	return t.last == 0 && t.sessions.Len() == 0 && t.keys.Len() == 0
}

// move advances the clock by an entry's stamp, and drops what is due.
func (t *sessionTable) move(stamp time.Time) {
	if seconds := stamp.Unix(); stamp.IsZero() || seconds < 0 || seconds >= timeEndSeconds {
		return
	}
	at := stamp.UnixNano()
	if at <= 0 {
		return
	}
	if t.last != 0 && at > t.last {
		step := at - t.last
		if step > stepMax {
			step = stepMax
		}
		t.clock += step
	}
	t.last = at
	for first := t.sessions.Front(); first != nil && first.Value.(*session).used+sessionTTL < t.clock; {
		t.dropSession()
		first = t.sessions.Front()
	}
	for first := t.keys.Front(); first != nil && first.Value.(*key).at+keyTTL < t.clock; {
		t.dropKey()
		first = t.keys.Front()
	}
}

func (t *sessionTable) dropSession() {
	gone := t.sessions.Remove(t.sessions.Front()).(*session)
	delete(t.sessionByID, gone.id)
	t.sessionsSize -= gone.size
}

func (t *sessionTable) dropKey() {
	gone := t.keys.Remove(t.keys.Front()).(*key)
	delete(t.keyByID, gone.id)
	t.keysSize -= gone.size()
}

func (t *sessionTable) open(id envelopeID) {
	if at, known := t.sessionByID[id]; known {
		at.Value.(*session).used = t.clock
		t.sessions.MoveToBack(at)
		return
	}
	for t.sessions.Len() > 0 && t.sessionsSize+sessionCost > sessionsSizeMax {
		t.dropSession()
	}
	t.addSession(&session{id: id, used: t.clock, answers: map[uint64]remembered{}})
}

func (t *sessionTable) addSession(s *session) {
	s.size = sessionCost
	for _, answer := range s.answers {
		s.size += answerCost + len(answer.content)
	}
	t.sessionByID[s.id] = t.sessions.PushBack(s)
	t.sessionsSize += s.size
}

func (t *sessionTable) addKey(k *key) {
	t.keyByID[k.id] = t.keys.PushBack(k)
	t.keysSize += k.size()
}

// request answers a REQUEST; `apply` is called if it is new.
func (t *sessionTable) request(e *envelope, apply func() interface{}) interface{} {
	at, known := t.sessionByID[e.id]
	if !known {
		return errSessionExpired
	}
	s := at.Value.(*session)
	s.used = t.clock
	t.sessions.MoveToBack(at)
	if e.b > s.lowest {
		t.forgetBelow(s, e.b)
	}
	if e.a < s.lowest {
		return errSessionExpired
	}
	if answer, known := s.answers[e.a]; known {
		return answer.answer()
	}
	if s.size >= sessionSizeMax {
		return errOverloaded
	}
	for t.sessionsSize >= sessionsSizeMax && t.sessions.Len() > 1 {
		t.dropSession()
	}
	given := apply()
	answer := remember(given)
	s.answers[e.a] = answer
	s.size += answerCost + len(answer.content)
	t.sessionsSize += answerCost + len(answer.content)
	return given
}

func (t *sessionTable) forgetBelow(s *session, lowest uint64) {
	for sequence, answer := range s.answers {
		if sequence < lowest {
			delete(s.answers, sequence)
			s.size -= answerCost + len(answer.content)
			t.sessionsSize -= answerCost + len(answer.content)
		}
	}
	s.lowest = lowest
}

// once answers a ONCE; `apply` is called if its key is new.
func (t *sessionTable) once(e *envelope, apply func() interface{}) interface{} {
	if at, known := t.keyByID[e.id]; known {
		k := at.Value.(*key)
		if e.b != 0 && k.fingerprint != 0 && e.b != k.fingerprint {
			return errRequestReused
		}
		return k.answer.answer()
	}
	for t.keysSize >= keysSizeMax {
		if t.keys.Front().Value.(*key).at+keyTTLMin >= t.clock {
			return errOverloaded
		}
		t.dropKey()
	}
	given := apply()
	t.addKey(&key{e.id, e.b, t.clock, remember(given)})
	return given
}
